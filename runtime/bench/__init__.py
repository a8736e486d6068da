"""`sd2rt bench`: what a bundle's images cost here, in time and memory, and where it goes."""
