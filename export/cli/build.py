"""`sd2rt build` and `sd2rt parity`: the commands that need PyTorch."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from sd2rt.engines.cuda.gpu_info import gpu_at_hand
from sd2rt.engines.errors import MissingDependencyError, RequestError
from sd2rt.engines.tensorrt.packages import load_module

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

PART_LABELS = {
    "text_encoder": "text encoder",
    "denoiser": "denoiser",
    "decoder": "decoder",
    "encoder": "encoder",
    "tiled_decoder": "decoder of tiles",
    "tiled_encoder": "encoder of tiles",
    "depth_estimator": "depth estimator",
    "bundle": "writing",
}

_CHECKPOINT_HELP = (
    "A diffusers folder, a single .safetensors or .ckpt file, a Hub id, or a demo: demo, demo-v, demo-inpaint, "
    "demo-depth, demo-x4."
)
CheckpointArgument = Annotated[str, typer.Argument(metavar="CHECKPOINT", help=_CHECKPOINT_HELP)]
VariantOption = Annotated[
    str | None,
    typer.Option(
        help="What a checkpoint is, where nothing in it tells: 2.0-base, 2.0-v, 2.0-depth, 2.0-inpainting, "
        "2.1-base, 2.1-v, x4-upscaler or sd-turbo."
    ),
]
PickleOption = Annotated[
    bool, typer.Option("--allow-pickle", help="Read .ckpt files (weights only; code in them is refused).")
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        help="Configuration files, as a diffusers folder, for a single file of unusual architecture."
    ),
]
LoraOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE[:SCALE]", help="A LoRA to add to the weights, at scale 1 if left out; repeatable."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def build(
    context: typer.Context,
    checkpoints: Annotated[list[str], typer.Argument(metavar="CHECKPOINT...", help=_CHECKPOINT_HELP)],
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
    elif given := sorted(_given(context) & _OF_ENGINES):
        raise RequestError(f"--{given[0].replace('_', '-')} is about engines: give --backend too")
    if engines_only:
        assert engines is not None
        if refused := sorted(_given(context) & _OF_CHECKPOINTS):
            raise RequestError(
                f"--{refused[0].replace('_', '-')} is about a checkpoint, and what is given here is a bundle"
            )
        with _display(as_json) as (_, progress):
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
        with _display(as_json) as (say, progress):
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


def parity(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="A bundle: a folder, or a name in the cache.")
    ],
    checkpoint: CheckpointArgument,
    variant: VariantOption = None,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Sampler steps of the whole images.")] = 10,
    lora: LoraOption = None,
    allow_pickle: PickleOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a bundle with PyTorch: every part, and whole images."""
    require_export()
    import transformers

    # It warns, at import of what nothing here uses, that torchvision is missing.
    transformers.logging.set_verbosity_error()
    from sd2rt.export.checkpoints.checkpoint import open_checkpoint
    from sd2rt.export.checkpoints.lora_merge import read_loras, with_loras
    from sd2rt.export.parity import compare

    loras = read_loras(lora or [])
    with _display(as_json) as (say, _):
        opened = open_checkpoint(
            checkpoint, variant=variant, allow_pickle=allow_pickle, config=config, progress=say
        )
        opened = with_loras(opened, loras)
        report = compare(find_bundle(bundle), opened, steps=steps, say=say)
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        print(report.as_text())
    if not report.holds:
        raise typer.Exit(3)


def require_export() -> None:
    """Check that what export needs is installed.

    Raises:
        MissingDependencyError: it is not, naming the first package and the command that installs them.
    """
    from importlib.util import find_spec

    for package in (
        "torch",
        "diffusers",
        "transformers",
        "onnx",
        "onnxscript",
        "safetensors",
        "huggingface_hub",
    ):
        if find_spec(package) is None:
            raise MissingDependencyError(
                f"{package} is not installed, building needs it: pip install 'sd2rt[export,cpu]'"
            )


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


def _given(context: typer.Context) -> set[str]:
    """The options on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _label(what: str) -> str:
    """A part, or an engine of one and its sizes, for people."""
    name, _, rest = what.partition(" ")
    return f"{PART_LABELS.get(name, name)}{rest and f' {rest}'}"


Say = Callable[[str], None]


@contextmanager
def _display(as_json: bool) -> Iterator[tuple[Say, Callable[[str, float], None]]]:
    """Progress for people (a bar per part), for machines (a JSON line per event), or for a log (a line each)."""
    if as_json:

        def emit(**fields: Any) -> None:
            print(json.dumps(fields), flush=True)

        yield (
            lambda message: emit(event="note", message=message),
            lambda part, fraction: emit(event="progress", part=part, fraction=round(fraction, 3)),
        )
    elif not sys.stderr.isatty():

        def line(part: str, fraction: float) -> None:
            if fraction in (0.0, 1.0):
                print(f"{_label(part)}: {'done' if fraction else 'started'}", file=sys.stderr, flush=True)

        yield lambda message: print(message, file=sys.stderr, flush=True), line
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            tasks: dict[str, Any] = {}

            def draw(part: str, fraction: float) -> None:
                if part not in tasks:
                    tasks[part] = bar.add_task(_label(part), total=1.0)
                bar.update(tasks[part], completed=fraction)

            yield lambda message: bar.console.print(message, highlight=False, markup=False), draw
