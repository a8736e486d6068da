"""LoRA files: reading them, naming the layers they change, and merging them into weights."""
