"""Demo data shipped with the package: weights, exported graphs and the tokenizer."""
