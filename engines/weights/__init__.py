"""Weight files: initialisers of a part by PyTorch name, and a safetensors reader on NumPy."""
