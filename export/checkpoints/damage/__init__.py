"""Reasons for which a weights file cannot be read: cut short, of another format, or whole."""
