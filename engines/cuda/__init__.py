"""One NVIDIA GPU: its stream, memory, buffers, and sessions that replay a captured graph."""
