"""Commands that need a bundle and nothing else: inspect, verify and prepare; and the options for building engines."""
