"""Overlapping tiles of large images: cutting, blending, statistics and noise, without networks."""
