"""Checkpoints of every published form: opened, identified, and checked key by key."""
