"""Scenes and their latents, encoded once: denoisers see each image many times, with different captions."""

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
_BATCH = 64


def scene(index: int) -> world.Scene:
    """The scene with this index, the same in every stage."""
    return world.draw_scene(np.random.default_rng([_SEED, index]))


class Latents:
    """Latents of scenes, multiplied by the scaling factor.

    Stored in ``path``, computed if it is missing: [SCENES, 4, h, w] float16. They are means of the encoder's
    distribution, whose deviation is far below the resolution of a denoiser step.
    """

    def __init__(self, vae: AutoencoderKL, scaling_factor: float, path: Path, scenes: int = SCENES) -> None:
        if not path.exists():
            latents = _encode(vae, scaling_factor, scenes)
            # Pass a stream: NumPy would add a suffix to the temporary name.
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
    for start in range(0, scenes, _BATCH):
        x = pixels([scene(index) for index in range(start, min(start + _BATCH, scenes))])
        mean = vae.quant_conv(vae.encoder(x)).chunk(2, dim=1)[0]
        batches.append((mean * scaling_factor).numpy().astype(np.float16))
        if start % (_BATCH * 50) == 0:
            print(f"latents: {start} of {scenes}", flush=True)
    return np.concatenate(batches)
