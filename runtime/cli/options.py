"""Options that commands have in common: how an image is sampled, and what its networks run on."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from sd2rt.engines.bundle.engine_entry import BackendName
from sd2rt.engines.bundle.schema import ComputePrecision

Steps: TypeAlias = Annotated[int | None, typer.Option(help="Sampler steps; the bundle's own if left out.")]
Sampler: TypeAlias = Annotated[
    str | None, typer.Option(help="A name that `sd2rt samplers` lists; the checkpoint's own if left out.")
]
Device: TypeAlias = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Backend: TypeAlias = Annotated[
    BackendName,
    typer.Option(
        help="What runs the networks; auto takes engines on a GPU where they fit, else ONNX Runtime."
    ),
]
Precision: TypeAlias = Annotated[
    ComputePrecision | None,
    typer.Option(
        help="Multiply in bfloat16, on CPUs that have it (OpenVINO); the bundle's own precision if left out.",
        show_default=False,
    ),
]
Threads: TypeAlias = Annotated[int | None, typer.Option(min=1, help="CPU threads; one per core if left out.")]
