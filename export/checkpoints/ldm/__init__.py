"""Names of weights in original single-file checkpoints: LDM's, and those of the MiDaS depth estimator."""
