"""Options that `sd2rt build` and `sd2rt parity` share, and a check for the packages that both need."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from sd2rt.engines.errors import MissingDependencyError
from sd2rt.engines.install_hint import install_hint
from sd2rt.engines.option_groups import OptionGroup

if TYPE_CHECKING:
    from sd2rt.engines.lora.file import Lora
    from sd2rt.export.checkpoints.checkpoint import Checkpoint

CHECKPOINT_HELP = (
    "A diffusers folder, a single .safetensors or .ckpt file, a Hub id, or a demo: demo, demo-v, demo-inpaint, "
    "demo-depth, demo-x4."
)
CheckpointArgument = Annotated[str, typer.Argument(metavar="CHECKPOINT", help=CHECKPOINT_HELP)]


@dataclass(frozen=True, slots=True)
class CheckpointOptions(OptionGroup):
    """Options for reading a checkpoint, another VAE, and the LoRAs to merge into it."""

    panel: ClassVar[str] = "Checkpoint"

    variant: Annotated[
        str | None,
        typer.Option(
            help="Published checkpoint that this one derives from, if its files do not show it: 2.0-base, 2.0-v, "
            "2.0-depth, 2.0-inpainting, 2.1-base, 2.1-v, x4-upscaler or sd-turbo."
        ),
    ] = None
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:SCALE[:TEXT]]",
            help="LoRA to merge into the weights, at scale 1 by default; a second scale is the text encoder's; "
            "repeatable.",
        ),
    ] = None
    vae: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|FILE",
            help="VAE instead of the checkpoint's own: a diffusers folder, or a single file such as "
            "vae-ft-mse-840000-ema-pruned.safetensors.",
        ),
    ] = None
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read .ckpt files: tensors only, no code.")
    ] = False
    config: Annotated[
        Path | None,
        typer.Option(
            help="Folder of configuration files, in the diffusers layout, for a single file of unusual architecture."
        ),
    ] = None

    def loras(self) -> list[Lora]:
        """Read the LoRAs, without PyTorch: before it is loaded, and a large checkpoint is opened.

        Raises:
            CheckpointError: a file cannot be read, or is not a LoRA of Stable Diffusion 2.
        """
        from sd2rt.export.checkpoints.arguments import read_loras

        return read_loras(self.lora or [], allow_pickle=self.allow_pickle)

    def open(self, checkpoint: str, say: Callable[[str], None], loras: Sequence[Lora]) -> Checkpoint:
        """Open a checkpoint with these options and merge LoRAs; ``say`` gets lines about progress.

        Raises:
            CheckpointError: the checkpoint or a LoRA cannot be read, or is not of Stable Diffusion 2.
            RequestError: an option is invalid.
        """
        from sd2rt.export.checkpoints.changes.lora_merge import with_loras
        from sd2rt.export.checkpoints.checkpoint import open_checkpoint

        opened = open_checkpoint(
            checkpoint, variant=self.variant, allow_pickle=self.allow_pickle, config=self.config, progress=say
        )
        if self.vae is not None:
            from sd2rt.export.checkpoints.changes.vae import with_vae

            path = Path(os.path.expanduser(self.vae))
            opened = with_vae(opened, path, allow_pickle=self.allow_pickle, progress=say)
        return with_loras(opened, loras)


def require_export() -> None:
    """Check that the packages that export needs are installed.

    Raises:
        MissingDependencyError: one is not; the message has the command that installs them.
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
                f"{package} is not installed, but building needs it: {install_hint('export', 'cpu')}"
            )
