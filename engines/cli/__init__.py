"""Commands that need only a bundle (inspect, verify, prepare), and the options for building engines."""
