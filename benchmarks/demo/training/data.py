"""Scenes and their latents, encoded once: a denoiser sees each picture many times, each time told otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from benchmarks.demo import world
from benchmarks.demo.training.vae import pixels
from sd2rt.engines.bundle.files import atomic_write

SCENES = 16_000
_SEED = 5
_TOGETHER = 64


def scene(index: int) -> world.Scene:
    """The scene of that index, the same in every stage."""
    return world.draw_scene(np.random.default_rng([_SEED, index]))


class Latents:
    """Latents of scenes as a denoiser takes them: times the scaling factor.

    Kept in ``path``, made where that is missing: [SCENES, 4, h, w] float16 (means of the encoder; their
    deviation is far below what a step of the denoiser resolves).
    """

    def __init__(self, vae: AutoencoderKL, scaling_factor: float, path: Path, scenes: int = SCENES) -> None:
        if not path.exists():
            latents = _encode(vae, scaling_factor, scenes)
            # A stream: under another name NumPy would add its suffix.
            with atomic_write(path) as temporary, temporary.open("wb") as stream:
                np.save(stream, latents)
        self._latents = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._latents)

    def take(self, indices: np.ndarray) -> torch.Tensor:
        """[N, 4, h, w] float32."""
        return torch.from_numpy(self._latents[indices].astype(np.float32))


@torch.no_grad()
def _encode(vae: AutoencoderKL, scaling_factor: float, scenes: int) -> np.ndarray:
    batches = []
    for start in range(0, scenes, _TOGETHER):
        x = pixels([scene(index) for index in range(start, min(start + _TOGETHER, scenes))])
        mean = vae.quant_conv(vae.encoder(x)).chunk(2, dim=1)[0]
        batches.append((mean * scaling_factor).numpy().astype(np.float16))
        if start % (_TOGETHER * 50) == 0:
            print(f"latents: {start} of {scenes}", flush=True)
    return np.concatenate(batches)
