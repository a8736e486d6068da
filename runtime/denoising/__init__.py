"""The step loop: batching of trajectories into denoiser calls, guidance, and checks for finite latents."""
