"""LoRA files: parse them, map their keys to layers, and merge them into weights."""
