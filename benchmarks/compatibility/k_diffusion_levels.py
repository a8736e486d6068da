"""Schedule types of AUTOMATIC1111 in PyTorch's float32, as k-diffusion computes them."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import beta as beta_distribution

TOTAL = 1000
AYS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)


class Levels:
    """k-diffusion's discrete levels: every ``stride``-th timestep's sigma in float32."""

    def __init__(self, signal: torch.Tensor, stride: int = 1) -> None:
        self.stride = stride
        kept = signal[stride - 1 :: stride]
        self.sigmas = ((1 - kept) / kept) ** 0.5
        self.logs = self.sigmas.log()
        self.low, self.high = self.sigmas[0].item(), self.sigmas[-1].item()

    def sigma(self, timesteps: torch.Tensor) -> torch.Tensor:
        place = ((timesteps - (self.stride - 1)) / self.stride).clamp(0, len(self.sigmas) - 1)
        below, share = place.floor().long(), place.frac()
        above = place.ceil().long()
        return ((1 - share) * self.logs[below] + share * self.logs[above]).exp()

    def timestep(self, sigma: float) -> float:
        logs = self.logs.double().numpy()
        if self.stride > 1:
            return float(np.abs(math.log(sigma) - logs).argmin() * self.stride + self.stride - 1)
        return float(np.interp(math.log(sigma), logs, np.arange(len(logs))))

    def spread(self, count: int) -> torch.Tensor:
        return self.sigma(torch.linspace(TOTAL - 1, self.stride - 1, count))


def signal_of(betas: tuple[float, float]) -> torch.Tensor:
    """a_t of the scaled linear schedule, as the original code registers it."""
    roots = torch.linspace(betas[0] ** 0.5, betas[1] ** 0.5, TOTAL, dtype=torch.float64)
    return torch.tensor(np.cumprod(1 - (roots**2).numpy()), dtype=torch.float32)


def schedule(name: str, count: int, model: Levels) -> list[float]:
    """Sigmas of a schedule type for a number of steps, with the last one's end."""
    low, high = model.low, model.high
    zero = True
    if name in ("Uniform", "Normal"):
        sigmas = model.spread(count)
    elif name == "SGM Uniform":
        sigmas = model.spread(count + 1)[:-1]
    elif name == "Karras":
        ramp, a, b = torch.linspace(0, 1, count), high ** (1 / 7), low ** (1 / 7)
        sigmas = (a + ramp * (b - a)) ** 7.0
    elif name == "Exponential":
        sigmas = torch.linspace(math.log(high), math.log(low), count).exp()
    elif name == "Polyexponential":
        sigmas = torch.exp(torch.linspace(1, 0, count) * (math.log(high) - math.log(low)) + math.log(low))
    elif name == "KL Optimal":
        share, zero = torch.arange(count + 1) / count, False
        ends = torch.arctan(torch.tensor(low)), torch.arctan(torch.tensor(high))
        sigmas = torch.tan(share * ends[0] + (1.0 - share) * ends[1])
    elif name == "Align Your Steps":
        logs = np.log(AYS)
        places = np.linspace(0, len(AYS) - 1, count)
        sigmas = torch.tensor(np.exp(np.interp(places, np.arange(len(AYS)), logs)), dtype=torch.float32)
    elif name == "Simple":
        stride = len(model.sigmas) / count
        sigmas = torch.stack([model.sigmas[-(1 + int(i * stride))] for i in range(count)])
    elif name == "DDIM":
        sigmas = model.sigmas[1 :: max(len(model.sigmas) // count, 1)].flip(0)
    elif name == "Beta":
        shares = beta_distribution.ppf(1 - np.linspace(0, 1, count), 0.6, 0.6)
        sigmas = torch.tensor(low + shares * (high - low), dtype=torch.float32)
    else:
        raise ValueError(name)
    return [*map(float, sigmas), *([0.0] if zero else [])]
