"""Image input and output: reading, sizing, masks, depth maps, resampling, pasting and writing."""
