"""Pipelines: open a bundle on a device and generate images from requests."""
