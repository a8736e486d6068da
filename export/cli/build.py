"""`sd2rt build`: build bundles from checkpoints, and add engines to bundles."""

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

_ENGINE_OPTIONS = {
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
_CHECKPOINT_OPTIONS = {"output", "variant", "precision", "allow_pickle", "config", "lora"}


def build(
    context: typer.Context,
    checkpoints: Annotated[list[str], typer.Argument(metavar="CHECKPOINT...", help=CHECKPOINT_HELP)],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="Folder for the bundle. Default: a name in the cache."),
    ] = None,
    variant: VariantOption = None,
    precision: Annotated[Precision, typer.Option(help="The networks' precision.")] = "fp32",
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N|WxH",
            help="A native size to record and to compile engines for; may repeat. The first is the default.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Rebuild, and replace an existing bundle.")] = False,
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
    """Build a bundle from each checkpoint: export its networks to ONNX, and optionally compile engines."""
    if len(checkpoints) > 1 and (output is not None or engines_only):
        raise RequestError(
            f"{'--output' if output is not None else '--engines-only'} takes one checkpoint, not {len(checkpoints)}: "
            "run one command for each"
        )
    sizes = [_parsed_size(text) for text in size or ()]
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
    elif options := sorted(given_options(context) & _ENGINE_OPTIONS):
        raise RequestError(f"--{options[0].replace('_', '-')} is an option for engines: add --backend")
    if engines_only:
        assert engines is not None
        if refused := sorted(given_options(context) & _CHECKPOINT_OPTIONS):
            raise RequestError(
                f"--{refused[0].replace('_', '-')} is an option for checkpoints, but --engines-only takes a bundle: "
                "leave it out"
            )
        with display(as_json) as (_, progress):
            _report_engines(_build_engines(checkpoints[0], engines, force, progress), as_json)
        return
    if engines is not None:
        # Check the target GPUs before an export that takes minutes.
        from sd2rt.engines.tensorrt.compile.targets import targets_of

        targets_of(load_module(engines.options.backend), engines.options, gpu_at_hand())
    require_export()
    from sd2rt.export.build import build as build_bundle
    from sd2rt.export.checkpoints.checkpoint import open_checkpoint
    from sd2rt.export.checkpoints.demo import DEMO_NAMES
    from sd2rt.export.checkpoints.lora_merge import read_loras, with_loras

    loras = read_loras(lora or [])
    for checkpoint in checkpoints:
        # Unlike Path.expanduser, this keeps a ~name that is no user's home.
        target = (
            Path(os.path.expanduser(output))
            if output is not None
            else named_bundle(_bundle_name(checkpoint, lora or []))
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
                # sd2rt owns the demos in the cache, so it replaces one of another version without --force.
                replace=checkpoint in DEMO_NAMES and output is None,
                again=force,
                progress=progress,
            )
            built = None if engines is None else _build_engines(str(result.path), engines, force, progress)
        _report_bundle(result, built, as_json)


def _report_bundle(result: BuildResult, built: EngineBuild | None, as_json: bool) -> None:
    manifest = result.manifest if built is None else built.manifest
    if as_json:
        facts = {"path": str(result.path), "fresh": result.fresh, "identity": manifest.identity}
        size_bytes = sum(file.size for file in manifest.files)
        print(json.dumps({"event": "done", **facts, "bytes": size_bytes}))
    else:
        print(result.path if result.fresh else f"{result.path} (already built)")
    if built is not None:
        _report_engines(built, as_json)


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


def _report_engines(built: EngineBuild, as_json: bool) -> None:
    for entry in (*built.made, *built.kept):
        fresh = entry in built.made
        if as_json:
            facts = {"part": entry.part, "label": entry.label, "fresh": fresh, "bytes": entry.file.size}
            print(json.dumps({"event": "engine", "path": str(built.path / entry.file.path), **facts}))
        else:
            detail = f"{entry.file.size / 1e6:.1f} MB" if fresh else "already built"
            print(f"{built.path / entry.file.path} ({detail})")


def _bundle_name(checkpoint: str, loras: list[str]) -> str:
    """Bundle name in the cache: the last component of the checkpoint's name, and the names of its LoRAs."""
    path = Path(checkpoint)
    name = path.stem if path.suffix in (".safetensors", ".ckpt", ".pt") else path.resolve().name
    names = (name, *(re.sub(r"\.safetensors\b", "", os.path.basename(lora)) for lora in loras))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(names)).strip("-._") or "bundle"


def _parsed_size(text: str) -> tuple[int, int]:
    from sd2rt.engines.bundle.sizes import check_side, parse_size

    try:
        width, height = parse_size(text, square=True)
    except ValueError:
        raise RequestError(f"--size {text!r} is not N or WxH, such as 512 or 768x512") from None
    for name, side in (("width", width), ("height", height)):
        check_side(name, side)
    return width, height
