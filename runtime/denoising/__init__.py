"""The step loop: trajectories batched into denoiser calls, their guidance, and checks for finite results."""
