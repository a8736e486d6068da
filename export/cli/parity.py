"""`sd2rt parity`: compare a bundle with PyTorch."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sd2rt.engines.bundle.reader import locate
from sd2rt.engines.cli.options import BundleArgument, JsonOption
from sd2rt.export.cli.options import CheckpointArgument, CheckpointOptions, require_export
from sd2rt.export.cli.progress import display


def parity(
    bundle: BundleArgument,
    checkpoint: CheckpointArgument,
    source: CheckpointOptions,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Sampler steps of the images.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Compare a bundle with PyTorch: every part, and whole images."""
    from sd2rt.export.checkpoints.arguments import require_checkpoint

    path, loras = locate(bundle), source.loras()
    require_checkpoint(checkpoint)
    require_export()
    import transformers

    # Its import warns that torchvision, which nothing here uses, is missing.
    transformers.logging.set_verbosity_error()
    from sd2rt.export.parity import compare

    with display(as_json) as (say, _):
        opened = source.open(checkpoint, say, loras)
        report = compare(path, opened, steps=steps, say=say)
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        print(report.as_text())
    if not report.holds:
        raise typer.Exit(3)
