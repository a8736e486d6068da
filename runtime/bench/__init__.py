"""`sd2rt bench`: measure speed and memory of a bundle on this machine, and record profiles."""
