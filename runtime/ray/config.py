"""Configuration of a processor of rows: the bundle and its adapters, actors, files and marks."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sd2rt.engines.bundle.engine_entry import BackendName
from sd2rt.engines.errors import RequestError
from sd2rt.engines.printable import repr_of, shown
from sd2rt.runtime.images.formats import FileFormat

ROWS_PER_BATCH = 16


class ProcessorConfig(BaseModel):
    """Settings of :func:`sd2rt.runtime.ray.data.build_processor`; make it by :meth:`of` for errors in one line.

    The files that it names are read by the process that builds the processor, and by each actor: on several
    machines they are in a folder that all share.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    bundle: str
    """Name in the cache, or path."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of rows without their own, by the names that rows have for them, such as ``{"steps": 20}``. A seed is
    that of every row without one."""
    device: str = "cpu"
    backend: BackendName = "auto"
    precision: Literal["bf16"] | None = None
    threads: int | None = Field(None, ge=1)
    """CPU threads of an actor; None for ``num_cpus`` if that is given, else one per core."""
    tile: int | None = None
    allow_cpu_fallback: bool = False
    max_batch: int | Literal["auto"] | None = None

    loras: tuple[str, ...] = ()
    """``FILE[:SCALE[:TEXT]]`` each, of all rows: an actor has one set."""
    embeddings: tuple[str, ...] = ()
    """``[TOKEN=]FILE`` each."""
    allow_pickle: bool = False

    concurrency: int | tuple[int, int] = 1
    """Number of actors, or the fewest and the most."""
    num_cpus: float | None = Field(None, ge=0)
    """CPUs that Ray reserves for an actor; None for ``threads`` if that is given, else 1."""
    num_gpus: float | None = Field(None, ge=0)
    """GPUs that Ray reserves for an actor, a fraction if several share one; None for one on CUDA devices."""
    ray_remote_args: dict[str, Any] = Field(default_factory=dict)
    """Further options of the actors, such as ``runtime_env``, ``resources`` or ``accelerator_type``."""
    batch_size: int = Field(ROWS_PER_BATCH, ge=1)
    """Rows that are handed to an actor, and come back or are written, together."""
    rows_in_flight: int | None = Field(None, ge=1)
    """Rows that an actor draws at a time, over all its batches; None for twice the images of a denoiser call."""

    image_column: str = "image_bytes"
    """Column of the encoded images."""
    id_column: str | None = None
    """Column that tells rows of equal options apart: their hashes, and the seeds of those without one."""
    keep: tuple[str, ...] = ()
    """Columns that are no options: they are kept, as all others are. Other names are errors of their rows."""

    file_format: FileFormat = "png"
    quality: int | None = Field(None, ge=0, le=100)
    metadata: bool = True
    watermark: Literal["sdv2", "none"] = "none"
    c2pa_cert: str | None = None
    c2pa_key: str | None = None
    safety: str | None = None
    """``opennsfw``, or ``module:function`` that actors can import; a flagged image is an error."""

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Return a configuration with the values.

        Raises:
            RequestError: a name is unknown, or a value is wrong.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"])) or "the configuration"
            given = "" if first["type"] == "missing" else f" {shown(repr_of(first['input']))}"
            raise RequestError(f"{name} of the processor{given and f' is{given}'}: {first['msg']}") from None

    def actor_cpus(self) -> float:
        """CPUs that Ray reserves for an actor."""
        if self.num_cpus is not None:
            return self.num_cpus
        return 1 if self.threads is None else self.threads

    def actor_gpus(self) -> float:
        """GPUs that Ray reserves for an actor."""
        if self.num_gpus is not None:
            return self.num_gpus
        return 1 if self.device.startswith("cuda") else 0

    def actor_threads(self) -> int | None:
        """CPU threads of an actor; None for one per core."""
        if self.threads is None and self.num_cpus is not None and self.num_cpus >= 1:
            return int(self.num_cpus)
        return self.threads
