"""Bundles on the Hugging Face Hub: fetched with every file verified, and uploaded with a model card."""
