"""The server, measured as a process by clients."""
