"""What an image file says about how it was made: written, read back, and translated from AUTOMATIC1111."""
