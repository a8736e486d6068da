"""Support for shells: names to complete, completion scripts, the layout of help."""
