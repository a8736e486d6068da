"""Where the demo's files lie in the package."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent

GRAPHS = _HERE / "graphs"
"""Exported graphs without weights, one archive for each part, configuration and precision."""
TOKENIZER = _HERE / "tokenizer" / "tokenizer.json"
"""The tokenizer that all published SD2 checkpoints share."""
WEIGHTS = _HERE / "weights"
"""Trained weights, as safetensors files."""
