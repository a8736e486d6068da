"""`sd2rt bench`: time, memory and profile of a bundle's images on this machine."""
