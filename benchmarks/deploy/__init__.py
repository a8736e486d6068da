"""Run what `deploy/` and `sd2rt triton` describe: an image built here, and NVIDIA's Triton Inference Server."""
