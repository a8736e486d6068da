"""Checkpoints with other weights than their own: merged LoRAs, another VAE."""
