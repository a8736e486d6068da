"""Marks of generated pictures on the command line: options to set them, and the command that reads them."""
