"""`sd2rt build`: bundles from checkpoints, and engines into them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sd2rt.engines.bundle.cache import find_bundle, named_bundle
from sd2rt.engines.bundle.schema import Precision
from sd2rt.engines.cli.engine_options import (
    BackendOption,
    BatchOption,
    ChunksOption,
    DecomposedOption,
    EngineRequest,
    EnginesOnlyOption,
    LevelOption,
    PartOption,
    PortableOption,
    PromptsOption,
    RefitOption,
    RowsOption,
    SmOption,
    WorkspaceOption,
    engine_request,
)
from sd2rt.engines.cli.options import JsonOption
from sd2rt.engines.console import given_options
from sd2rt.engines.cuda.gpu_info import gpu_at_hand
from sd2rt.engines.errors import RequestError
from sd2rt.engines.tensorrt.packages import load_module
from sd2rt.export.cli.options import (
    CHECKPOINT_HELP,
    ConfigOption,
    LoraOption,
    PickleOption,
    VariantOption,
    require_export,
)
from sd2rt.export.cli.progress import display

if TYPE_CHECKING:
    from sd2rt.engines.tensorrt.compile.add_engines import EngineBuild
    from sd2rt.export.build import BuildResult

_OF_ENGINES = {
    "batch",
    "sm",
    "portable",
    "part",
    "rows",
    "prompt_chunks",
    "prompts",
    "allow_decomposed",
    "refit",
    "workspace",
    "optimization_level",
}
_OF_CHECKPOINTS = {"output", "variant", "precision", "allow_pickle", "config", "lora"}


def build(
    context: typer.Context,
    checkpoints: Annotated[list[str], typer.Argument(metavar="CHECKPOINT...", help=CHECKPOINT_HELP)],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="The bundle: a folder; by name in the cache if left out."),
    ] = None,
    variant: VariantOption = None,
    precision: Annotated[Precision, typer.Option(help="The networks' precision.")] = "fp32",
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N|WxH",
            help="A native size to record, the first being the default, and to compile engines for; may repeat.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Build again, and replace what bundle is there.")
    ] = False,
    lora: LoraOption = None,
    allow_pickle: PickleOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    backend: BackendOption = None,
    engines_only: EnginesOnlyOption = False,
    batch: BatchOption = "1,4",
    sm: SmOption = None,
    portable: PortableOption = False,
    part: PartOption = None,
    rows: RowsOption = "any",
    prompt_chunks: ChunksOption = 1,
    prompts: PromptsOption = 1,
    allow_decomposed: DecomposedOption = False,
    refit: RefitOption = "no",
    workspace: WorkspaceOption = None,
    optimization_level: LevelOption = None,
) -> None:
    """Make a bundle from each checkpoint: export its networks to ONNX, and compile engines of them if asked."""
    if len(checkpoints) > 1 and (output is not None or engines_only):
        raise RequestError(
            f"{'--output' if output is not None else '--engines-only'} is for one of the {len(checkpoints)} that "
            "are given: name them in commands of their own"
        )
    sizes = [_size(text) for text in size or ()]
    engines: EngineRequest | None = None
    if backend is not None or engines_only:
        engines = engine_request(
            backend,
            sizes=sizes,
            batch=batch,
            sm=sm or (),
            portable=portable,
            parts=part or (),
            rows=rows,
            prompt_chunks=prompt_chunks,
            prompts=prompts,
            allow_decomposed=allow_decomposed,
            refit=refit,
            workspace=workspace,
            optimization_level=optimization_level,
        )
    elif given := sorted(given_options(context) & _OF_ENGINES):
        raise RequestError(f"--{given[0].replace('_', '-')} is about engines: give --backend too")
    if engines_only:
        assert engines is not None
        if refused := sorted(given_options(context) & _OF_CHECKPOINTS):
            raise RequestError(
                f"--{refused[0].replace('_', '-')} is about a checkpoint, and what is given here is a bundle"
            )
        with display(as_json) as (_, progress):
            _report(_build_engines(checkpoints[0], engines, force, progress), as_json)
        return
    if engines is not None:
        # Before minutes of export.
        from sd2rt.engines.tensorrt.compile.targets import targets_of

        targets_of(load_module(engines.options.backend), engines.options, gpu_at_hand())
    require_export()
    from sd2rt.export.build import build as build_bundle
    from sd2rt.export.checkpoints.checkpoint import open_checkpoint
    from sd2rt.export.checkpoints.demo import DEMO_NAMES
    from sd2rt.export.checkpoints.lora_merge import read_loras, with_loras

    loras = read_loras(lora or [])
    for checkpoint in checkpoints:
        # Unlike Path.expanduser, this leaves a ~ that is nobody's home as it is.
        target = (
            Path(os.path.expanduser(output))
            if output is not None
            else named_bundle(_name(checkpoint, lora or []))
        )
        with display(as_json) as (say, progress):
            opened = open_checkpoint(
                checkpoint, variant=variant, allow_pickle=allow_pickle, config=config, progress=say
            )
            opened = with_loras(opened, loras)
            result = build_bundle(
                opened,
                target,
                precision=precision,
                sizes=sizes,
                # The demos in the cache are sd2rt's own: one of another version makes way without being asked.
                replace=checkpoint in DEMO_NAMES and output is None,
                again=force,
                progress=progress,
            )
            built = None if engines is None else _build_engines(str(result.path), engines, force, progress)
        _say_built(result, built, as_json)


def _say_built(result: BuildResult, built: EngineBuild | None, as_json: bool) -> None:
    manifest = result.manifest if built is None else built.manifest
    if as_json:
        facts = {"path": str(result.path), "fresh": result.fresh, "identity": manifest.identity}
        size_bytes = sum(file.size for file in manifest.files)
        print(json.dumps({"event": "done", **facts, "bytes": size_bytes}))
    else:
        print(result.path if result.fresh else f"{result.path} (was built before, and is whole)")
    if built is not None:
        _report(built, as_json)


def _build_engines(
    bundle: str, request: EngineRequest, again: bool, progress: Callable[[str, float], None]
) -> EngineBuild:
    from sd2rt.engines.tensorrt.compile.add_engines import build_engines

    return build_engines(
        find_bundle(bundle),
        request.shapes,
        request.options,
        parts=request.parts,
        again=again,
        progress=progress,
    )


def _report(built: EngineBuild, as_json: bool) -> None:
    for entry in (*built.made, *built.kept):
        fresh = entry in built.made
        if as_json:
            facts = {"part": entry.part, "label": entry.label, "fresh": fresh, "bytes": entry.file.size}
            print(json.dumps({"event": "engine", "path": str(built.path / entry.file.path), **facts}))
        else:
            told = f"{entry.file.size / 1e6:.1f} MB" if fresh else "was built before, and is whole"
            print(f"{built.path / entry.file.path} ({told})")


def _name(checkpoint: str, loras: list[str]) -> str:
    """The name that a bundle gets in the cache: the checkpoint's own last part, and those of LoRAs in it."""
    path = Path(checkpoint)
    name = path.stem if path.suffix in (".safetensors", ".ckpt", ".pt") else path.resolve().name
    names = (name, *(re.sub(r"\.safetensors\b", "", os.path.basename(lora)) for lora in loras))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(names)).strip("-._") or "bundle"


def _size(text: str) -> tuple[int, int]:
    from sd2rt.engines.bundle.sizes import check_side, parse_size

    try:
        width, height = parse_size(text, square=True)
    except ValueError:
        raise RequestError(f"--size {text!r} is not N or WxH, such as 512 or 768x512") from None
    for name, side in (("width", width), ("height", height)):
        check_side(name, side)
    return width, height
