"""Open checkpoints of every published format, identify them, and check them key by key."""
