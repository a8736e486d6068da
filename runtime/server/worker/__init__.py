"""The worker process, which owns the engines, and the supervisor in the front process."""
