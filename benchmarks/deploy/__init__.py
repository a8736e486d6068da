"""Run what `deploy/` and `sd2rt triton` describe: an image that is built here, and NVIDIA's Triton Inference Server."""
