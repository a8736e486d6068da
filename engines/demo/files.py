"""Names of the demos, and their files in the package."""

from __future__ import annotations

from pathlib import Path

from sd2rt.engines.bundle.model_kinds import DEMO_NAMES as DEMO_NAMES
from sd2rt.engines.bundle.model_kinds import KINDS, Defaults, ModelKind, TaskName, with_defaults
from sd2rt.engines.bundle.schema import Precision
from sd2rt.engines.errors import CheckpointError

TOKEN_TABLE = "embeddings.token_embedding.weight"
TOKEN_IDS = "token_ids"
"""Tensor in the text encoder's file: token ids of the rows in its token table, the only ones met in training."""

PACKAGED = Path(__file__).parent
GRAPHS = PACKAGED / "graphs"
"""Exported graphs without weights: an archive for each part, configuration and precision."""
MANIFESTS = PACKAGED / "manifests"
"""A template of the manifest for each demo and precision."""
TOKENIZER = PACKAGED / "tokenizer" / "tokenizer.json"
"""Tokenizer of all published SD2 checkpoints, set to truncate and pad to 77 ids."""
WEIGHTS = PACKAGED / "weights"
"""Trained weights, as safetensors files."""
KERNELS = WEIGHTS / "depth-kernels.safetensors"
"""Standardised convolution kernels of the depth estimator, as in its graph: computed from its weights by PyTorch."""


_STEPS, _GUIDANCE = 25, 4.0
"""Defaults of the demos: more of either draws no more prompts correctly (docs/performance.md)."""


def demo_tasks(kind: ModelKind) -> dict[TaskName, Defaults]:
    """Tasks of the demo of a kind, with its own defaults."""
    return with_defaults(KINDS[kind].tasks, _STEPS, _GUIDANCE)


def template_path(name: str, precision: Precision) -> Path:
    """Path of the template of a demo's manifest."""
    return MANIFESTS / f"{name}-{precision}.json"


def read_packaged(path: Path) -> bytes:
    """Read a file of the package.

    Raises:
        CheckpointError: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(
            f"the demo is incomplete, {path} is missing: reinstall sd2rt, or name a checkpoint"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}: reinstall sd2rt") from None
