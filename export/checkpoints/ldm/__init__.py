"""Names of weights in original single-file checkpoints: LDM's, and the MiDaS depth estimator's."""
