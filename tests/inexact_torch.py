"""PyTorch with a mathematics library that rounds float32 otherwise than this processor's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def install() -> None:
    """Put a fifth of the float32 results of sqrt, log and linspace off by one ulp, until this process ends.

    Libraries whose sqrt and log are not correctly rounded err like this: Intel MKL's sqrt does on AMD processors, for
    18% of the values of one table. A value's own bits choose it and the direction, so equal arguments have equal
    results.
    """
    for owner in (torch, torch.Tensor):
        for name in ("sqrt", "log"):
            setattr(owner, name, _inexact(getattr(owner, name)))
        for name in ("pow", "__pow__"):
            if hasattr(owner, name):
                setattr(owner, name, _inexact_root(getattr(owner, name)))
    for name in ("sqrt_", "log_"):
        setattr(torch.Tensor, name, _inexact_in_place(getattr(torch.Tensor, name)))
    torch.linspace = _inexact(torch.linspace)


def off_by_an_ulp(values: torch.Tensor) -> torch.Tensor:
    """The values, a fifth of them moved to the next float32; zeros, infinities and NaN stay."""
    if values.dtype is not torch.float32 or values.device.type != "cpu":
        return values
    found = values.detach().numpy()
    mixed = found.view(np.uint32) * np.uint32(2654435761) >> np.uint32(8)
    moved = (mixed % 5 == 0) & np.isfinite(found) & (found != 0)
    towards = np.where(mixed // 5 % 2 == 0, np.float32(-np.inf), np.float32(np.inf))
    return torch.from_numpy(np.where(moved, np.nextafter(found, towards), found))


def _inexact(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *arguments, **options: off_by_an_ulp(function(*arguments, **options))


def _inexact_root(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def power(base: Any, exponent: Any, **options: Any) -> torch.Tensor:
        found = function(base, exponent, **options)
        return off_by_an_ulp(found) if isinstance(exponent, float) and exponent == 0.5 else found

    return power


def _inexact_in_place(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def changed(values: torch.Tensor) -> torch.Tensor:
        return values.copy_(off_by_an_ulp(function(values)))

    return changed
