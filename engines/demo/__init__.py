"""Data of the demo that comes with the package: weights, exported graphs and the tokenizer."""
