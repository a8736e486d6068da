"""Run one training stage with a decaying learning rate, resuming from a checkpoint file."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import nn

from sd2rt.engines.bundle.files import atomic_write

SAVE_SECONDS = 120
LOG_STEPS = 50

Loss = Callable[[np.random.Generator, torch.Generator], Mapping[str, torch.Tensor]]
"""Draws a batch with the two generators and returns named losses; ``loss`` is minimised."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Length and learning rate of one stage."""

    steps: int
    rate: float
    """Learning rate of AdamW between ``warm`` warm-up steps and a decay to zero over the last share ``falling``."""
    falling: float = 0.35
    warm: int = 100
    decay: float = 0.01
    seed: int = 0

    def rate_at(self, step: int) -> float:
        start = self.steps * (1 - self.falling)
        fall = 1.0 if step < start else 0.5 + 0.5 * math.cos(math.pi * (step - start) / (self.steps - start))
        return self.rate * min(1.0, (step + 1) / self.warm) * fall


class Interrupted(Exception):  # noqa: N818
    """A signal stopped training; the state is saved."""


def train(name: str, modules: Mapping[str, nn.Module], loss: Loss, recipe: Recipe, folder: Path) -> None:
    """Train ``modules`` and save them to ``folder/name.pt``, resuming from that file if it exists.

    Batches depend only on the seed and the step, so a resumed run sees the same data as an uninterrupted one. Writes
    a line of JSON to ``folder/name.log`` every LOG_STEPS.

    Raises:
        Interrupted: on SIGTERM or SIGINT.
    """
    path = folder / f"{name}.pt"
    parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, recipe.rate, betas=(0.9, 0.99), weight_decay=recipe.decay, fused=True
    )
    step, seconds = 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        for key, weights in state["modules"].items():
            modules[key].load_state_dict(weights)
        if state["optimizer"] is not None:
            optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]
        if step >= recipe.steps:
            return

    def save() -> None:
        done = step >= recipe.steps
        state = {
            "modules": {key: module.state_dict() for key, module in modules.items()},
            "optimizer": None if done else optimizer.state_dict(),
            "step": step,
            "seconds": seconds,
            "recipe": asdict(recipe),
        }
        with atomic_write(path) as temporary:
            torch.save(state, temporary)

    stop = _Stop()
    sums: dict[str, float] = {}
    summed = 0
    saved = last = time.monotonic()
    for module in modules.values():
        module.train()
    while step < recipe.steps:
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step)
        losses = loss(
            np.random.default_rng([recipe.seed, step]),
            torch.Generator().manual_seed(recipe.seed * 10**6 + step),
        )
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        summed += 1
        for key, value in losses.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
        now = time.monotonic()
        seconds, last = seconds + now - last, now
        if step % LOG_STEPS == 0 or step == recipe.steps:
            line = {"step": step, "seconds": round(seconds, 1)}
            text = json.dumps(line | {key: round(value / summed, 5) for key, value in sums.items()})
            with (folder / f"{name}.log").open("a") as log:
                log.write(text + "\n")
            print(name, text, flush=True)
            sums, summed = {}, 0
        if stop.requested or now - saved > SAVE_SECONDS:
            save()
            saved = now
        if stop.requested:
            raise Interrupted(
                f"{name} stopped after {step} of {recipe.steps} steps; run the same command to resume"
            )
    save()


class _Stop:
    """Turns signals into a flag that is checked between steps."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
