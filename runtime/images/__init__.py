"""Images in and out: reading, sizing, masks, depth maps, resampling, and tensors made into images."""
