"""Options shared by `sd2rt build` and `sd2rt parity`, and the check for the packages that both need."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sd2rt.engines.errors import MissingDependencyError

CHECKPOINT_HELP = (
    "A diffusers folder, a single .safetensors or .ckpt file, a Hub id, or a demo: demo, demo-v, demo-inpaint, "
    "demo-depth, demo-x4."
)
CheckpointArgument = Annotated[str, typer.Argument(metavar="CHECKPOINT", help=CHECKPOINT_HELP)]
VariantOption = Annotated[
    str | None,
    typer.Option(
        help="The checkpoint's variant, where it cannot be detected: 2.0-base, 2.0-v, 2.0-depth, 2.0-inpainting, "
        "2.1-base, 2.1-v, x4-upscaler or sd-turbo."
    ),
]
PickleOption = Annotated[
    bool,
    typer.Option(
        "--allow-pickle", help="Read .ckpt files: weights only, files that contain code are refused."
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(help="Folder of diffusers configuration files, for a single file of unusual architecture."),
]
LoraOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE[:SCALE]", help="A LoRA to merge into the weights, at scale 1 by default; may repeat."
    ),
]


def require_export() -> None:
    """Check that the packages for export are installed.

    Raises:
        MissingDependencyError: a package is missing; the message has the command that installs them all.
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
                f"{package} is not installed, but building needs it: pip install 'sd2rt[export,cpu]'"
            )
