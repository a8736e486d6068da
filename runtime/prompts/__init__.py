"""Prompts: tokens, hidden states, textual inversion, and the text conditioning of each denoiser call."""
