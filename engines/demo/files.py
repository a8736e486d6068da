"""Paths of the demo's files in the package."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent

GRAPHS = _HERE / "graphs"
"""Exported graphs without weights: an archive for each part, configuration and precision."""
TOKENIZER = _HERE / "tokenizer" / "tokenizer.json"
"""Tokenizer of all published SD2 checkpoints."""
WEIGHTS = _HERE / "weights"
"""Trained weights, as safetensors files."""
