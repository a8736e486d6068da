"""The step scheduler: decides which images share the next denoiser call. It has no threads and reads no clock."""
