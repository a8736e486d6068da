"""Large images in overlapping tiles: cutting, blending, statistics and noise; no network."""
