"""`sd2rt build`: make bundles from checkpoints, and compile engines into them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from sd2rt.engines.bundle.cache import find_bundle, named_bundle
from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.bundle.model_kinds import MAX_SCALE
from sd2rt.engines.bundle.schema import Precision
from sd2rt.engines.cli.engine_options import EngineOptions, EngineRequest
from sd2rt.engines.cli.options import JsonOption
from sd2rt.engines.console import given_options, print_path, report
from sd2rt.engines.cuda.gpu_info import gpu_at_hand
from sd2rt.engines.demo.files import DEMO_NAMES
from sd2rt.engines.errors import RequestError
from sd2rt.engines.option_groups import OptionGroup
from sd2rt.engines.printable import shown
from sd2rt.engines.tensorrt.packages import load_module
from sd2rt.export.cli.options import CHECKPOINT_HELP, CheckpointOptions, require_export
from sd2rt.export.cli.progress import display

if TYPE_CHECKING:
    from sd2rt.engines.bundle.writer import BuildResult
    from sd2rt.engines.lora.file import Lora
    from sd2rt.engines.tensorrt.compile.add_engines import EngineBuild


@dataclass(frozen=True, slots=True)
class BundleOptions(OptionGroup):
    """The bundle to write."""

    panel: ClassVar[str] = "Bundle"

    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="Folder of the bundle; default: named after CHECKPOINT in the cache."
        ),
    ] = None
    precision: Annotated[Precision, typer.Option(help="Precision of the networks.")] = "fp32"
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N|WxH",
            help="Native size to record and to compile engines for; the first is the default size; repeatable.",
        ),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1000,
            help="Default sampler steps to record; default: the checkpoint's.",
            show_default=False,
        ),
    ] = None
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Default guidance scale to record; 1 or less turns guidance off.", show_default=False
        ),
    ] = None
    force: Annotated[bool, typer.Option("--force", help="Build again, replacing an existing bundle.")] = False


def build(
    context: typer.Context,
    checkpoints: Annotated[list[str], typer.Argument(metavar="CHECKPOINT...", help=CHECKPOINT_HELP)],
    bundle: BundleOptions,
    source: CheckpointOptions,
    engine_options: EngineOptions,
    as_json: JsonOption = False,
) -> None:
    """Make a bundle from each checkpoint: export its networks to ONNX, and optionally compile engines."""
    engines_only = engine_options.engines_only
    if len(checkpoints) > 1 and (bundle.output is not None or engines_only):
        option = "--output" if bundle.output is not None else "--engines-only"
        raise RequestError(
            f"{option} is for one checkpoint, and {len(checkpoints)} are given: use a command for each"
        )
    sizes = [_size(text) for text in bundle.size or ()]
    engines: EngineRequest | None = None
    if engine_options.backend is not None or engines_only:
        engines = engine_options.request(sizes)
    elif name := _first_given(context, EngineOptions):
        raise RequestError(f"{name} is an option for engines: add --backend")
    if engines_only:
        assert engines is not None
        if name := _first_given(context, CheckpointOptions) or _first_given(
            context, BundleOptions, {"size", "force"}
        ):
            raise RequestError(
                f"{name} is an option for checkpoints, but --engines-only takes a bundle: omit it"
            )
        _check_targets(engines)
        read_manifest(find_bundle(checkpoints[0]))
        with display(as_json) as (say, progress):
            say(f"adding engines to {checkpoints[0]}")
            _report(_build_engines(checkpoints[0], engines, bundle.force, progress), as_json)
        return
    if engines is not None:
        _check_targets(engines)
    if bundle.guidance is not None and not abs(bundle.guidance) <= MAX_SCALE:
        raise RequestError(
            f"--guidance is {bundle.guidance:g}: use a number from {-MAX_SCALE:g} to {MAX_SCALE:g}"
        )
    from sd2rt.export.checkpoints.arguments import require_checkpoint, require_vae

    if not all(_is_packaged(checkpoint, source) for checkpoint in checkpoints):
        require_export()
    # A typing mistake should not cost the seconds that PyTorch takes to load.
    loras = source.loras()
    for lora in loras:
        if lora.embeddings:
            names = ", ".join(map(shown, lora.embeddings))
            report(
                f"note: the embeddings in {shown(lora.path, 200)} ({names}) are not part of a bundle: load each with "
                f"'sd2rt run --embedding NAME={shown(lora.path, 200)}'"
            )
    for checkpoint in checkpoints:
        require_checkpoint(checkpoint)
    if source.vae is not None:
        require_vae(source.vae)
    for number, checkpoint in enumerate(checkpoints, 1):
        # Unlike Path.expanduser, this leaves a ~ without a home folder as it is.
        target = (
            Path(os.path.expanduser(bundle.output))
            if bundle.output is not None
            else named_bundle(_name(checkpoint, source))
        )
        of_several = f" ({number} of {len(checkpoints)})" if len(checkpoints) > 1 else ""
        with display(as_json) as (say, progress):
            say(f"building {target.name} from {checkpoint}{of_several}")
            result = _build(checkpoint, target, bundle, source, loras, sizes, say, progress)
            built = (
                None if engines is None else _build_engines(str(result.path), engines, bundle.force, progress)
            )
        _say_built(result, built, as_json)


def _check_targets(engines: EngineRequest) -> None:
    """Refuse an impossible target before minutes of work."""
    from sd2rt.engines.tensorrt.compile.targets import targets_of

    targets_of(load_module(engines.options.backend), engines.options, gpu_at_hand())


def _is_packaged(checkpoint: str, source: CheckpointOptions) -> bool:
    """Return whether a checkpoint is a demo whose bundle is made from packaged files alone, without PyTorch."""
    # A checkpoint in the working directory comes first.
    if checkpoint not in DEMO_NAMES or os.path.isfile(checkpoint) or os.path.isdir(checkpoint):
        return False
    return source.variant is None and not source.lora and source.config is None and source.vae is None


def _build(
    checkpoint: str,
    target: Path,
    bundle: BundleOptions,
    source: CheckpointOptions,
    loras: Sequence[Lora],
    sizes: Sequence[tuple[int, int]],
    say: Callable[[str], None],
    progress: Callable[[str, float], None],
) -> BuildResult:
    if _is_packaged(checkpoint, source):
        from sd2rt.engines.demo.build import build_demo

        build = partial(build_demo, checkpoint)
    else:
        from sd2rt.export.build import build as build_bundle

        build = partial(build_bundle, source.open(checkpoint, say, loras))
    return build(
        target,
        precision=bundle.precision,
        sizes=sizes,
        steps=bundle.steps,
        guidance=bundle.guidance,
        # Demo bundles of another version in the cache are replaced without asking.
        replace=checkpoint in DEMO_NAMES and bundle.output is None,
        again=bundle.force,
        progress=progress,
    )


def _first_given(
    context: typer.Context, group: type[OptionGroup], except_for: Collection[str] = ()
) -> str | None:
    """Name an option of a group that was given on the command line; None if there is none."""
    names = {field.name for field in fields(group)} - set(except_for)  # type: ignore[arg-type]
    return next((f"--{name.replace('_', '-')}" for name in sorted(given_options(context) & names)), None)


def _say_built(result: BuildResult, built: EngineBuild | None, as_json: bool) -> None:
    manifest = result.manifest if built is None else built.manifest
    if as_json:
        facts = {"path": str(result.path), "fresh": result.fresh, "identity": manifest.identity}
        size_bytes = sum(file.size for file in manifest.files)
        print(json.dumps({"event": "done", **facts, "bytes": size_bytes}))
    else:
        print_path(result.path, "" if result.fresh else " (already built)")
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
            note = f"{entry.file.size / 1e6:.1f} MB" if fresh else "already built"
            print_path(built.path / entry.file.path, f" ({note})")


def _name(checkpoint: str, source: CheckpointOptions) -> str:
    """Name a bundle in the cache after the last part of its checkpoint's path, its VAE and its LoRAs."""
    path = Path(checkpoint)
    name = (
        path.stem
        if path.suffix in (".safetensors", ".ckpt", ".pt")
        else os.path.basename(os.path.realpath(path))
    )
    files = [*([] if source.vae is None else [os.path.realpath(source.vae)]), *(source.lora or [])]
    names = (name, *(re.sub(r"\.(safetensors|bin|pt|pth)\b", "", os.path.basename(file)) for file in files))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(names)).strip("-._") or "bundle"


def _size(text: str) -> tuple[int, int]:
    from sd2rt.engines.bundle.sizes import check_sides, parse_size

    try:
        width, height = parse_size(text, square=True)
    except ValueError:
        raise RequestError(f"--size {text!r} is not N or WxH, such as 512 or 768x512") from None
    check_sides(width, height)
    return width, height
