"""Random-weight checkpoints in the published formats, for tests and benchmarks only."""
