"""Settings of the workers, as the front passes them on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from sd2rt.runtime.server.logs import LogFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """Bundles to serve, devices to use, and limits."""

    bundles: dict[str, str]
    """Folder of each bundle, by the name under which it is served."""
    devices: tuple[str, ...] = ("cpu",)
    """Each gets a worker process: ``cpu``, ``cuda`` or ``cuda:N``."""
    keep: int | None = None
    """Bundles that are loaded at once on a device. None loads all at start; others are loaded at first use, and the
    least recently used one is closed once it is idle."""
    loras: dict[str, str] = field(default_factory=dict)
    """Files of LoRAs by the name that requests use."""
    embeddings: dict[str, str] = field(default_factory=dict)
    """Files of textual inversions by token."""
    lora_sets: int = 2
    """Sets of LoRAs, with their scales, that are loaded at once; each takes a bundle's memory."""
    max_images: int = 64
    """Unfinished images that are admitted on each device."""
    max_image_pixels: int | None = None
    """Limit of an input image's pixels; None for the limit of ``sd2rt run``."""
    max_side: int = 4096
    """Pixels of a result's side; twice as many for upscalers. A bundle's default size is always allowed."""
    max_steps: int = 1000
    """Steps of a request, at most."""
    memory_bytes: int | None = None
    """Memory of a device for bundles; None for the memory that is available at start."""
    threads: int | None = None
    max_batch: int | Literal["auto"] | None = None
    cuda_graph: bool | None = None
    allow_cpu_fallback: bool = False
    tile: int | None = None
    backend: str = "auto"
    precision: str | None = None
    metadata: bool = True
    """Store generation settings and an XMP packet in image files."""
    watermark: Literal["sdv2", "none"] = "none"
    c2pa_cert: str | None = None
    """PEM file of a certificate chain, to sign image files with."""
    c2pa_key: str | None = None
    safety: str | None = None
    """Check of finished images: ``opennsfw``, or ``module:function``."""
    start_seconds: float = 600.0
    """A worker that is not ready after so long is killed."""
    silence_seconds: float = 120.0
    """A worker that sends nothing for so long hangs, and is killed; others send numbers twice a second."""
    log_level: str = "WARNING"
    """Of the worker's log, which goes to standard error."""
    log_format: LogFormat = "text"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Make settings from the result of :meth:`to_json` that went through JSON."""
        return cls(**{**fields, "devices": tuple(fields["devices"])})
