"""AUTOMATIC1111's names of the ways to enlarge before a second pass."""

from __future__ import annotations

from sd2rt.runtime.request.second_pass import EnlargeMethod

UPSCALER_NAMES: dict[str, str] = {
    "bilinear": "Latent",
    "bicubic": "Latent (bicubic)",
    "bicubic-antialiased": "Latent (bicubic antialiased)",
    "nearest": "Latent (nearest)",
    "nearest-exact": "Latent (nearest-exact)",
    "lanczos": "Lanczos",
    "nearest-pixels": "Nearest",
}
"""Its name for each method."""

METHODS: dict[str, EnlargeMethod] = {
    "latent": "bilinear",
    # Antialiasing has no effect on this filter when it enlarges.
    "latent (antialiased)": "bilinear",
    "latent (bicubic)": "bicubic",
    "latent (bicubic antialiased)": "bicubic-antialiased",
    "latent (nearest)": "nearest",
    "latent (nearest-exact)": "nearest-exact",
    "lanczos": "lanczos",
    # Resizes with Lanczos' filter.
    "none": "lanczos",
    "nearest": "nearest-pixels",
}
"""Method for each of its names, in lower case."""
