"""Engine options of `sd2rt build`, and their validation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, get_args

import typer

from sd2rt.engines.bundle.engine_entry import BuilderOptions, EngineBackend, Refit
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.errors import RequestError
from sd2rt.engines.tensorrt.compile.profiles import Rows, Shapes, parse_batches

PANEL = "Engines"

BackendOption = Annotated[
    EngineBackend | None,
    typer.Option(
        help="Compile engines too: TensorRT on this GPU, or TensorRT for RTX.", rich_help_panel=PANEL
    ),
]
EnginesOnlyOption = Annotated[
    bool,
    typer.Option(
        "--engines-only",
        help="Add engines to an existing bundle, passed as CHECKPOINT. Does not need PyTorch.",
        rich_help_panel=PANEL,
    ),
]
BatchOption = Annotated[
    str,
    typer.Option(
        metavar="N,N|N-N",
        help="Images per denoiser call, as buckets: 1,4 means 1, and 2 to 4 tuned for 4.",
        rich_help_panel=PANEL,
    ),
]
SmOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NN",
        help="Compute capability of a GPU to build for, which need not be present: 89 for 8.9; may be repeated "
        "(TensorRT for RTX).",
        rich_help_panel=PANEL,
    ),
]
PortableOption = Annotated[
    bool,
    typer.Option(
        "--portable",
        help="Build for all GPUs from Ampere on; with TensorRT, for its lean runtime too.",
        rich_help_panel=PANEL,
    ),
]
PartOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PART", help="Part to build, by default all; may be repeated.", rich_help_panel=PANEL
    ),
]
RowsOption = Annotated[
    Rows,
    typer.Option(
        help="Images that engines accept: guided and unguided mixed, or only one of the two.",
        rich_help_panel=PANEL,
    ),
]
ChunksOption = Annotated[
    int,
    typer.Option(min=1, max=16, help="Longest prompt, in chunks of 75 tokens.", rich_help_panel=PANEL),
]
PromptsOption = Annotated[
    int,
    typer.Option(min=1, max=16, help="Maximum number of prompts joined by AND.", rich_help_panel=PANEL),
]
DecomposedOption = Annotated[
    bool,
    typer.Option(
        "--allow-decomposed",
        help="Accept attention that is built from several kernels if there is no fused one.",
        rich_help_panel=PANEL,
    ),
]
RefitOption = Annotated[
    Refit,
    typer.Option(
        help="Weights that can be replaced later: those that a LoRA changes (individual), all, or identical for a "
        "small engine without weights, which loads them from the ONNX files (TensorRT).",
        rich_help_panel=PANEL,
    ),
]
WorkspaceOption = Annotated[
    int | None,
    typer.Option(
        metavar="MB", min=1, help="Maximum scratch memory of a kernel, in MB.", rich_help_panel=PANEL
    ),
]
LevelOption = Annotated[
    int | None,
    typer.Option(min=0, max=5, help="Effort of the search for fast kernels.", rich_help_panel=PANEL),
]


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """Validated engine options of the command line."""

    options: BuilderOptions
    shapes: Shapes
    parts: tuple[PartName, ...]


def engine_request(
    backend: EngineBackend | None,
    *,
    sizes: Sequence[tuple[int, int]],
    batch: str,
    sm: Sequence[str],
    portable: bool,
    parts: Sequence[str],
    rows: Rows,
    prompt_chunks: int,
    prompts: int,
    allow_decomposed: bool,
    refit: Refit,
    workspace: int | None,
    optimization_level: int | None,
) -> EngineRequest:
    """Validate and combine the options.

    Raises:
        RequestError: an option is invalid, or no backend is named.
    """
    if backend is None:
        raise RequestError("no backend is named: add --backend tensorrt or --backend tensorrt-rtx")
    for name in parts:
        if name not in get_args(PartName):
            raise RequestError(f"--part {name!r}: the parts are {', '.join(get_args(PartName))}")
    if backend == "tensorrt-rtx" and refit != "no":
        raise RequestError(
            f"--refit {refit}: TensorRT for RTX cannot build refittable engines without a GPU: omit --refit, "
            "then each LoRA gets its own engine"
        )
    return EngineRequest(
        BuilderOptions(
            backend=backend,
            compute_capabilities=tuple(dict.fromkeys(_capability(text) for text in sm)),
            portable=portable,
            allow_decomposed=allow_decomposed,
            refit=refit,
            workspace_bytes=None if workspace is None else workspace * 1_000_000,
            optimization_level=optimization_level,
        ),
        Shapes(tuple(sizes), parse_batches(batch), rows, prompt_chunks, prompts),
        tuple(name for name in get_args(PartName) if name in parts),
    )


def _capability(text: str) -> str:
    match = re.fullmatch(r"(?:sm_?)?([0-9]{1,2})\.?([0-9])", text, re.IGNORECASE)
    if match is None:
        raise RequestError(
            f"--sm {text!r} is not a compute capability: use, for example, 89 for 8.9 or 120 for 12.0"
        )
    return f"{int(match[1])}.{match[2]}"
