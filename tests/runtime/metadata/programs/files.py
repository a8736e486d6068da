"""Picture files as other programs write them, and the noise levels of SD2 that they were made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sd2rt.engines.bundle.sampler_config import NoiseConfig
from sd2rt.runtime import Recipe, read_recipe

NOISE_CONFIG = NoiseConfig(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="epsilon",
)


def model_sigmas() -> NDArray[np.float64]:
    """Noise-to-signal ratio of each timestep, in float64."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return np.sqrt(1 / np.cumprod(1 - betas) - 1)


def png(path: Path, **chunks: Any) -> Path:
    """Write a PNG with text chunks; what is no text as JSON. ``-`` in names is written as two ``_``."""
    info = PngInfo()
    for key, value in chunks.items():
        info.add_text(key.replace("__", "-"), value if isinstance(value, str) else json.dumps(value))
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def recipe_of(folder: Path, **chunks: Any) -> Recipe:
    return read_recipe(png(folder / "picture.png", **chunks))
