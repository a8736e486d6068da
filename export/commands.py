"""`sd2rt build` and `sd2rt parity`: the commands that need PyTorch."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from sd2rt.engines.errors import MissingDependencyError, RequestError
from sd2rt.engines.manifest import Precision
from sd2rt.engines.store import find_bundle, named_bundle

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

CheckpointArgument = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A diffusers folder, a single .safetensors or .ckpt file, a Hub id, or 'demo'.",
    ),
]
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
    checkpoint: CheckpointArgument,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="The bundle: a folder; by name in the cache if left out."),
    ] = None,
    variant: VariantOption = None,
    precision: Annotated[Precision, typer.Option(help="The networks' precision.")] = "fp32",
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N|WxH", help="A native size to record, the first being the default; may repeat."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Build again, and replace what bundle is there.")
    ] = False,
    lora: LoraOption = None,
    allow_pickle: PickleOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a bundle from a checkpoint: export its networks to ONNX."""
    sizes = [_size(text) for text in size or ()]
    # Unlike Path.expanduser, this leaves a ~ that is nobody's home as it is.
    target = (
        Path(os.path.expanduser(output))
        if output is not None
        else named_bundle(_name(checkpoint, lora or []))
    )
    require_export()
    from sd2rt.export.build import build as build_bundle
    from sd2rt.export.checkpoint import open_checkpoint
    from sd2rt.export.merged_parts import read_loras, with_loras

    loras = read_loras(lora or [])
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
            # The demo in the cache is sd2rt's own: one of another version makes way without being asked.
            replace=checkpoint == "demo" and output is None,
            again=force,
            progress=progress,
        )
    manifest = result.manifest
    if as_json:
        facts = {"path": str(result.path), "fresh": result.fresh, "identity": manifest.identity}
        size_bytes = sum(file.size for file in manifest.files)
        print(json.dumps({"event": "done", **facts, "bytes": size_bytes}))
    else:
        print(result.path if result.fresh else f"{result.path} (was built before, and is whole)")


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
    from sd2rt.export.checkpoint import open_checkpoint
    from sd2rt.export.merged_parts import read_loras, with_loras
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
    from sd2rt.engines.sampling import check_side

    match = re.fullmatch(r"(\d+)(?:[xX](\d+))?", text)
    if match is None:
        raise RequestError(f"--size {text!r} is not N or WxH, such as 512 or 768x512")
    width, height = int(match[1]), int(match[2] or match[1])
    for name, side in (("width", width), ("height", height)):
        check_side(name, side)
    return width, height


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
                print(
                    f"{PART_LABELS[part]}: {'done' if fraction else 'started'}", file=sys.stderr, flush=True
                )

        yield lambda message: print(message, file=sys.stderr, flush=True), line
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            tasks: dict[str, Any] = {}

            def draw(part: str, fraction: float) -> None:
                if part not in tasks:
                    tasks[part] = bar.add_task(PART_LABELS[part], total=1.0)
                bar.update(tasks[part], completed=fraction)

            yield lambda message: bar.console.print(message, highlight=False, markup=False), draw
