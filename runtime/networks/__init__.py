"""The networks of an opened bundle, their results for the same input, and the turns of threads at them."""
