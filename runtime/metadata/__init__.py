"""Generation metadata of PNG files: written, read back, and imported from AUTOMATIC1111."""
