"""The options of `sd2rt build` that are about engines, and what they come to."""

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
        help="CHECKPOINT is a bundle: add engines to it. Takes no PyTorch.",
        rich_help_panel=PANEL,
    ),
]
BatchOption = Annotated[
    str,
    typer.Option(
        metavar="N,N|N-N",
        help="Images denoised in one call, as buckets: 1,4 is 1, and 2 to 4 tuned for 4.",
        rich_help_panel=PANEL,
    ),
]
SmOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NN",
        help="A GPU to build for, whether or not it is here, by its compute capability: 89 for 8.9; may repeat "
        "(TensorRT for RTX).",
        rich_help_panel=PANEL,
    ),
]
PortableOption = Annotated[
    bool,
    typer.Option(
        "--portable",
        help="For all GPUs from Ampere on; with TensorRT, in its lean runtime too.",
        rich_help_panel=PANEL,
    ),
]
PartOption = Annotated[
    list[str] | None,
    typer.Option(metavar="PART", help="A part to build; all if left out; may repeat.", rich_help_panel=PANEL),
]
RowsOption = Annotated[
    Rows,
    typer.Option(
        help="What engines take: guided and unguided images in any mixture, or one kind of them alone.",
        rich_help_panel=PANEL,
    ),
]
ChunksOption = Annotated[
    int,
    typer.Option(min=1, max=16, help="The longest prompt, in chunks of 75 tokens.", rich_help_panel=PANEL),
]
PromptsOption = Annotated[
    int,
    typer.Option(min=1, max=16, help="Prompts joined by AND, at most.", rich_help_panel=PANEL),
]
DecomposedOption = Annotated[
    bool,
    typer.Option(
        "--allow-decomposed",
        help="Accept attention of several kernels where there is none made for it.",
        rich_help_panel=PANEL,
    ),
]
RefitOption = Annotated[
    Refit,
    typer.Option(
        help="Which weights can be replaced later: those that a LoRA changes (individual), all, or identical for a "
        "small engine that takes its weights from the ONNX (TensorRT).",
        rich_help_panel=PANEL,
    ),
]
WorkspaceOption = Annotated[
    int | None,
    typer.Option(metavar="MB", min=1, help="Memory that one kernel may use, at most.", rich_help_panel=PANEL),
]
LevelOption = Annotated[
    int | None,
    typer.Option(min=0, max=5, help="How long to search for kernels.", rich_help_panel=PANEL),
]


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """Engines as the command line asks for them."""

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
    """Check the options and put them together.

    Raises:
        RequestError: one of them is wrong, or no backend is named.
    """
    if backend is None:
        raise RequestError("no backend is named: give --backend tensorrt or --backend tensorrt-rtx")
    for name in parts:
        if name not in get_args(PartName):
            raise RequestError(f"--part {name!r}: the parts are {', '.join(get_args(PartName))}")
    if backend == "tensorrt-rtx" and refit != "no":
        raise RequestError(
            f"--refit {refit}: TensorRT for RTX cannot build this without a GPU: a LoRA gets its own engine"
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
        raise RequestError(f"--sm {text!r} is no compute capability, such as 89 for 8.9 or 120 for 12.0")
    return f"{int(match[1])}.{match[2]}"
