"""`sd2rt parity`: compare a bundle with PyTorch."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sd2rt.engines.bundle.cache import find_bundle
from sd2rt.engines.cli.options import JsonOption
from sd2rt.export.cli.options import (
    CheckpointArgument,
    ConfigOption,
    LoraOption,
    PickleOption,
    VariantOption,
    require_export,
)
from sd2rt.export.cli.progress import display


def parity(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="A bundle: a folder, or a name in the cache.")
    ],
    checkpoint: CheckpointArgument,
    variant: VariantOption = None,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Sampler steps for whole images.")] = 10,
    lora: LoraOption = None,
    allow_pickle: PickleOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a bundle with PyTorch: every part, and whole images."""
    require_export()
    import transformers

    # Importing it warns that torchvision is missing, which nothing here uses.
    transformers.logging.set_verbosity_error()
    from sd2rt.export.checkpoints.checkpoint import open_checkpoint
    from sd2rt.export.checkpoints.lora_merge import read_loras, with_loras
    from sd2rt.export.parity import compare

    loras = read_loras(lora or [])
    with display(as_json) as (say, _):
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
