"""Pictures [H, W, 3] by formulas."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def random_pixels(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    """Independent random bytes."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def natural(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    """Noise whose amplitude falls with the frequency, as that of photographs does, in correlated channels."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    amplitude = 1 / np.maximum(frequency, 1 / max(width, height))
    channels = []
    for _ in range(3):
        spectrum = amplitude * np.exp(2j * np.pi * rng.random(amplitude.shape))
        noise = np.fft.irfft2(spectrum, s=(height, width))
        channels.append(noise / noise.std())
    mixing = np.array([[1.0, 0.3, 0.1], [1.0, -0.1, 0.1], [1.0, -0.2, -0.2]])
    mixed = np.tensordot(np.stack(channels, axis=-1), mixing, axes=([-1], [1]))
    pixels: NDArray[np.uint8] = np.clip(128 + 50 * mixed, 0, 255).round().astype(np.uint8)
    return pixels


def saturated(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    """Areas of fully saturated colours."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 2, (height // 16 + 1, width // 16 + 1, 3), np.uint8) * np.uint8(255)
    return np.repeat(np.repeat(cells, 16, axis=0), 16, axis=1)[:height, :width]
