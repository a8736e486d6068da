"""Numbers of the workers, for metrics."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class WorkerStats:
    """Sums over all workers. Counters never fall: those of workers that died are kept."""

    up: dict[str, bool] = field(default_factory=dict)
    """By device: True if the worker is ready."""
    restarts: dict[str, int] = field(default_factory=dict)
    """By reason: ``died``, ``garbage``, ``silent`` or ``start_timeout``."""
    waiting: int = 0
    """Unfinished images whose first step is not made."""
    running: int = 0
    """Unfinished images whose first step is made."""
    image_steps: int = 0
    images: int = 0
    nonfinite: dict[str, int] = field(default_factory=dict)
    """Images that were not finite, by stage: ``step`` or ``decode``."""
    out_of_memory: int = 0
    batches: dict[int, int] = field(default_factory=dict)
    """Denoiser calls by number of images in them."""
    step_seconds: dict[int, float] = field(default_factory=dict)
    """Measured seconds of a denoiser call by number of images: the largest over devices, bundles and sizes."""
    device_memory_bytes: dict[str, int] = field(default_factory=dict)
    """By device: memory in use by its worker; resident memory for CPUs."""
    cancelled: int = 0
    """Requests whose caller closed the generator."""
