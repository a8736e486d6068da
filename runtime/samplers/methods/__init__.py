"""One module for each sampling method: options to a plan of small matrices."""
