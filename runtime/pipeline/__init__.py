"""Pipelines: a bundle opened on a device, and requests made into images.

The networks, the VAE, conditioning inputs and running images live here.
"""
