"""Prompts: tokens, hidden states, textual inversion, and text conditioning for each denoiser call."""
