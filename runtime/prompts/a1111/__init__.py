"""AUTOMATIC1111's prompt syntax: emphasis, chunks of 75 tokens, AND, and edits by step."""
