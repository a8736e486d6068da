"""Engine options of `sd2rt build`, and their validation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, get_args

import typer

from sd2rt.engines.bundle.engine_entry import BuilderOptions, EngineBackend, Refit
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.errors import RequestError
from sd2rt.engines.option_groups import OptionGroup
from sd2rt.engines.tensorrt.compile.profiles import Rows, Shapes, parse_batches


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """Validated engine options of the command line."""

    options: BuilderOptions
    shapes: Shapes
    parts: tuple[PartName, ...]


@dataclass(frozen=True, slots=True)
class EngineOptions(OptionGroup):
    """Engines to compile."""

    panel: ClassVar[str] = "Engines"

    backend: Annotated[
        EngineBackend | None,
        typer.Option(help="Compile engines too: TensorRT on this GPU, or TensorRT for RTX."),
    ] = None
    engines_only: Annotated[
        bool,
        typer.Option(
            "--engines-only",
            help="Add engines to an existing bundle, passed as CHECKPOINT. Does not need PyTorch.",
        ),
    ] = False
    batch: Annotated[
        str,
        typer.Option(
            metavar="N,N|N-N",
            help="Images per denoiser call, as buckets: 1,4 means 1, and 2 to 4 tuned for 4.",
        ),
    ] = "1,4"
    sm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NN",
            help="Compute capability of a GPU to build for, which need not be present: 89 for 8.9; repeatable "
            "(TensorRT for RTX).",
        ),
    ] = None
    portable: Annotated[
        bool,
        typer.Option(
            "--portable", help="Build for all GPUs from Ampere on; with TensorRT, for its lean runtime too."
        ),
    ] = False
    part: Annotated[
        list[str] | None,
        typer.Option(metavar="PART", help="Part to build, by default all; repeatable."),
    ] = None
    shared: Annotated[
        bool,
        typer.Option(
            "--shared",
            help="One engine of a part for all sizes: the weights are stored and loaded once.",
        ),
    ] = False
    rows: Annotated[
        Rows,
        typer.Option(help="Images that engines accept: guided and unguided mixed, or only one of the two."),
    ] = "any"
    prompt_chunks: Annotated[
        int, typer.Option(min=1, max=16, help="Longest prompt, in chunks of 75 tokens.")
    ] = 1
    prompts: Annotated[int, typer.Option(min=1, max=16, help="Maximum number of prompts joined by AND.")] = 1
    allow_decomposed: Annotated[
        bool,
        typer.Option(
            "--allow-decomposed",
            help="Accept attention that is built from several kernels if there is no fused one.",
        ),
    ] = False
    refit: Annotated[
        Refit,
        typer.Option(
            help="Weights that can be replaced later: those that a LoRA changes (individual), all, or identical "
            "for a small engine without weights, which loads them from the ONNX files (TensorRT).",
        ),
    ] = "no"
    workspace: Annotated[
        int | None, typer.Option(metavar="MB", min=1, help="Maximum scratch memory of a kernel, in MB.")
    ] = None
    optimization_level: Annotated[
        int | None, typer.Option(min=0, max=5, help="Effort of the search for fast kernels.")
    ] = None

    def request(self, sizes: Sequence[tuple[int, int]]) -> EngineRequest:
        """Validate and combine the options; ``sizes`` are in pixels, (width, height), empty for the bundle's.

        Raises:
            RequestError: an option is invalid, or no backend is named.
        """
        if self.backend is None:
            raise RequestError("no backend is named: add --backend tensorrt or --backend tensorrt-rtx")
        parts = self.part or ()
        for name in parts:
            if name not in get_args(PartName):
                raise RequestError(f"--part {name!r}: the parts are {', '.join(get_args(PartName))}")
        if self.backend == "tensorrt-rtx" and self.refit != "no":
            raise RequestError(
                f"--refit {self.refit}: TensorRT for RTX cannot build refittable engines without a GPU: omit "
                "--refit, then each LoRA gets its own engine"
            )
        return EngineRequest(
            BuilderOptions(
                backend=self.backend,
                compute_capabilities=tuple(dict.fromkeys(_capability(text) for text in self.sm or ())),
                portable=self.portable,
                allow_decomposed=self.allow_decomposed,
                refit=self.refit,
                workspace_bytes=None if self.workspace is None else self.workspace * 1_000_000,
                optimization_level=self.optimization_level,
            ),
            Shapes(
                tuple(sizes),
                parse_batches(self.batch),
                self.rows,
                self.prompt_chunks,
                self.prompts,
                shared=self.shared,
            ),
            tuple(name for name in get_args(PartName) if name in parts),
        )


def _capability(text: str) -> str:
    match = re.fullmatch(r"(?:sm_?)?([0-9]{1,2})\.?([0-9])", text, re.IGNORECASE)
    if match is None:
        raise RequestError(
            f"--sm {text!r} is not a compute capability: use, for example, 89 for 8.9 or 120 for 12.0"
        )
    return f"{int(match[1])}.{match[2]}"
