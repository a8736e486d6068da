"""AUTOMATIC1111 1.10's samplers as plain loops over a network, for comparison with sd2rt's plans.

They are written from the papers' formulas and from facts about its code. Levels are PyTorch's float32, the rest is
float64, and Brownian noise is torchsde's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torchsde

from benchmarks.compatibility import k_diffusion_loops as loops
from benchmarks.compatibility.k_diffusion_levels import TOTAL, Levels, schedule
from benchmarks.compatibility.k_diffusion_loops import Array, Loop, Noise

Network = Callable[[Array, float], Array]
"""Guided output of the network for its scaled input and a timestep."""


@dataclass(frozen=True)
class Sampler:
    """One of AUTOMATIC1111's samplers on noise levels."""

    loop: Loop
    automatic: str = "Uniform"
    discards: bool = False
    brownian: bool = False


SAMPLERS = {
    "DPM++ 2M": Sampler(loops.dpmpp_2m, "Karras"),
    "DPM++ SDE": Sampler(loops.dpmpp_sde, "Karras", brownian=True),
    "DPM++ 2M SDE": Sampler(loops.dpmpp_2m_sde, "Exponential", brownian=True),
    "DPM++ 2M SDE Heun": Sampler(loops.dpmpp_2m_sde_heun, "Exponential", brownian=True),
    "DPM++ 2S a": Sampler(loops.dpmpp_2s_ancestral, "Karras"),
    "DPM++ 3M SDE": Sampler(loops.dpmpp_3m_sde, "Exponential", discards=True, brownian=True),
    "Euler a": Sampler(loops.euler_ancestral),
    "Euler": Sampler(loops.euler),
    "LMS": Sampler(loops.lms),
    "Heun": Sampler(loops.heun),
    "DPM2": Sampler(loops.dpm2, "Karras", discards=True),
    "DPM2 a": Sampler(loops.dpm2_ancestral, "Karras", discards=True),
    "DPM fast": Sampler(loops.dpm_fast),
    "Restart": Sampler(loops.restart, "Karras"),
    "LCM": Sampler(loops.lcm),
}
LISTED = ("DDIM", "PLMS", "UniPC")
SCHEDULES = (
    "Automatic", "Uniform", "Karras", "Exponential", "Polyexponential", "SGM Uniform", "KL Optimal",
    "Align Your Steps", "Simple", "Normal", "DDIM", "Beta",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Ingredients of one picture."""

    steps: int
    network: Network
    v_prediction: bool
    signal: torch.Tensor
    normals: Iterator[Array]
    """Draws of the seed: the initial noise, then those of the steps."""
    seed: int
    image: Array | None = None
    strength: float = 1.0
    mask: Array | None = None
    """1 where the image is repainted, 0 where it is kept; None for the whole."""

    @property
    def encoded(self) -> int:
        return int(min(self.strength, 0.999) * self.steps)

    def blended(self, latents: Array) -> Array:
        """Put the image's own latents outside of the mask."""
        if self.mask is None or self.image is None:
            return latents
        return self.mask * latents + (1 - self.mask) * self.image


def latents(sampler: str, schedule_type: str, run: Run) -> Array:
    """Latents of a picture."""
    return run.blended(_latents(sampler, schedule_type, run))


def _latents(sampler: str, schedule_type: str, run: Run) -> Array:
    if sampler in LISTED:
        return {"DDIM": _ddim, "PLMS": _plms, "UniPC": _unipc}[sampler](run)
    entry, first = SAMPLERS[sampler], next(run.normals)
    model = Levels(run.signal, 20 if sampler == "LCM" else 1)
    name = entry.automatic if schedule_type == "Automatic" else schedule_type
    sigmas = schedule(name, run.steps + entry.discards, model)
    if entry.discards:
        del sigmas[-2]
    whole = sigmas
    if run.image is None:
        x = first * sigmas[0]
    else:
        sigmas = sigmas[run.steps - run.encoded - 1 :]
        x = run.image + first * sigmas[0]

    def denoise(x: Array, sigma: float) -> Array:
        return run.blended(estimate(x, sigma))

    def estimate(x: Array, sigma: float) -> Array:
        inner, timestep = 1 / math.sqrt(sigma**2 + 1), model.timestep(sigma)
        output = run.network(x * inner, timestep)
        if sampler == "LCM":
            # Every output counts as noise; the scalings keep the clean image at timestep 0.
            place = (timestep * 10) ** 2
            return math.sqrt(place / (place + 0.25)) * (x - sigma * output) + 0.25 / (place + 0.25) * x
        if run.v_prediction:
            return x * inner**2 - sigma * inner * output
        return x - sigma * output

    noise: Noise = lambda sigma, following: next(run.normals)  # noqa: E731
    if entry.brownian:
        noise = _brownian(run.seed, [s for s in whole if s > 0], first.shape)
    if sampler == "DPM fast" and run.image is None:
        ends = float(model.sigmas[-1]), float(model.sigmas[0])
        return loops.dpm_fast_between(denoise, x, ends, run.steps, noise, eta=1.0)
    return entry.loop(denoise, x, sigmas, noise)


def _brownian(seed: int, sigmas: list[float], shape: tuple[int, ...]) -> Noise:
    ends = torch.tensor(min(sigmas)), torch.tensor(max(sigmas))
    tree: Any = torchsde.BrownianTree(ends[0], torch.zeros(shape), ends[1], entropy=seed)

    def noise(sigma: float, following: float) -> Array:
        begin, end = torch.tensor(sigma), torch.tensor(following)
        increment: torch.Tensor = -tree(end, begin) / (begin - end).abs().sqrt()
        return increment.double().numpy()

    return noise


def _listed(run: Run) -> list[int]:
    return [min(t + 1, TOTAL - 1) for t in range(0, TOTAL, TOTAL // run.steps)]


def _begin(run: Run) -> tuple[Array, list[int]]:
    """Initial sample alpha x_0 + sigma eps, and the timesteps from the lowest."""
    listed, first = _listed(run), next(run.normals)
    if run.image is None:
        return first, listed
    a = float(run.signal[listed[run.encoded]])
    return run.image * a**0.5 + first * (1 - a) ** 0.5, listed[: run.encoded]


def _noise_of(run: Run, x: Array, timestep: float) -> Array:
    # Unlike k-diffusion's samplers, these show the network the image without noise.
    x = run.blended(x)
    output = run.network(x, timestep)
    if not run.v_prediction:
        return output
    a = float(run.signal[int(timestep)])
    return np.asarray(a**0.5 * output + (1 - a) ** 0.5 * x)


def _move(run: Run, x: Array, eps: Array, timestep: int, following: int) -> Array:
    a, b = float(run.signal[timestep]), float(run.signal[following])
    return np.asarray(b**0.5 * (x - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps)


def _ddim(run: Run) -> Array:
    x, listed = _begin(run)
    for following, timestep in reversed(list(pairwise(listed))):
        x = _move(run, x, _noise_of(run, x, timestep), timestep, following)
    return x


def _plms(run: Run) -> Array:
    x, listed = _begin(run)
    older: list[Array] = []
    weights = {1: (3 / 2, -1 / 2), 2: (23 / 12, -4 / 3, 5 / 12), 3: (55 / 24, -59 / 24, 37 / 24, -3 / 8)}
    for following, timestep in reversed(list(pairwise(listed))):
        eps = _noise_of(run, x, timestep)
        if older:
            mean = sum(w * e for w, e in zip(weights[len(older)], [eps, *older], strict=True))
        else:
            mean = (eps + _noise_of(run, _move(run, x, eps, timestep, following), following)) / 2
        x = _move(run, x, np.asarray(mean), timestep, following)
        older = [eps, *older[:2]]
    return x


def _unipc(run: Run) -> Array:
    """UniPC-3 with B(h) = h (arXiv:2302.04867), by solving for the weights of the differences at every step."""
    x, listed = _begin(run)
    one = torch.tensor(1 / TOTAL)
    start = torch.tensor(1.0) if run.image is None else torch.tensor(listed[-1]) / TOTAL + one
    times = torch.linspace(start.item(), 1 / TOTAL, len(listed) + 1)
    half_logs = 0.5 * np.log(run.signal.double().numpy())
    log_alphas = np.interp(times.double().numpy() * TOTAL - 1, np.arange(TOTAL), half_logs)
    alphas, sigmas = np.exp(log_alphas), np.sqrt(-np.expm1(2 * log_alphas))
    places = np.log(alphas / sigmas)

    def clean(x: Array, i: int) -> Array:
        eps = _noise_of(run, x, float((times[i] - one) * TOTAL))
        return np.asarray((x - sigmas[i] * eps) / alphas[i])

    known = [clean(x, 0)]
    for i in range(1, len(times)):
        order = min(i, 3, len(times) - i)
        h = places[i] - places[i - 1]
        ratios = [(places[i - 1 - k] - places[i - 1]) / h for k in range(1, order)]
        slopes = [(known[k] - known[0]) / ratios[k - 1] for k in range(1, order)]
        plain = sigmas[i] / sigmas[i - 1] * x - alphas[i] * math.expm1(-h) * known[0]
        # b_k = k! phi_{k+1}(-h) -h / B, with phi by its recursion, and B = -h.
        phi, targets = math.expm1(-h) / -h - 1, []
        for k in range(1, order + 1):
            targets.append(phi * math.factorial(k) / -h)
            phi = phi / -h - 1 / math.factorial(k + 1)

        def solved(nodes: list[float], targets: list[float]) -> Array:
            return np.linalg.solve(np.vander(nodes, increasing=True).T, targets).astype(np.float64)

        predicted = plain
        if order > 1:
            weights = [0.5] if order == 2 else solved(ratios, targets[:-1])
            predicted = plain + alphas[i] * h * sum(w * s for w, s in zip(weights, slopes, strict=True))
        if i == len(times) - 1:
            return np.asarray(predicted)
        latest = clean(predicted, i)
        weights = [0.5] if order == 1 else solved([*ratios, 1.0], targets)
        changes = [*slopes, latest - known[0]]
        x = plain + alphas[i] * h * sum(w * s for w, s in zip(weights, changes, strict=True))
        known = [latest, *known[:2]]
    return x
