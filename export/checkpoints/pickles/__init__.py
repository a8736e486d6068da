"""Pickled checkpoints, followed without running what they name."""
