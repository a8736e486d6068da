"""The HTTP server: a front process that speaks HTTP, and a supervised worker process for each device."""
