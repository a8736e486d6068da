"""Requests for images: fields, validation, defaults from the bundle, and sampling plans."""
