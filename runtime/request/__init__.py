"""Requests: what can be asked of a pipeline, checked once and resolved against a bundle."""
