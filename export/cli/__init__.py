"""Commands that need PyTorch: build and parity."""
