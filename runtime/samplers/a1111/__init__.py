"""Grids of AUTOMATIC1111 1.10: noise levels and timesteps of its samplers and schedule types, in its float32."""
