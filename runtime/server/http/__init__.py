"""The front process: HTTP, keys, limits, logs and metrics. It imports no NumPy, no Pillow and no engine."""
