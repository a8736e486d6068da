"""Checkpoints of random weights in the published formats, for tests and benchmarks only."""
