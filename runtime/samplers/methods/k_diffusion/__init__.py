"""Sampling methods of k-diffusion and AUTOMATIC1111 that diffusers does not have."""
