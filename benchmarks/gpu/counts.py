"""What a guided step costs at least: operations, and weights read once, counted from the ONNX graphs."""

from __future__ import annotations

import json
from pathlib import Path

STEP_TFLOP = {512: 1.6085, 768: 4.2982, 1024: 9.3500}
"""Of the UNet for one guided image (two rows), by the image's side in pixels; a multiply and an add are two."""
WEIGHT_BYTES = 1_732_000_000
"""Of its 865,910,724 parameters in fp16."""


def floor_ms(facts: Path, side: int, batch: int) -> float | None:
    """The least time of a step at the rates that the stage ``facts`` has measured; None where they are not known.

    Args:
        facts: its records.
    """
    if side not in STEP_TFLOP or not facts.is_file():
        return None
    found = {}
    for line in facts.read_text().splitlines():
        record = json.loads(line)
        found[record["what"]] = record["value"]
    if "gemm_tflops" not in found or "copy_gb_s" not in found:
        return None
    # A copy's rate counts what is read and what is written, which for memory are one.
    work = STEP_TFLOP[side] * batch / float(found["gemm_tflops"]["median"])
    weights = WEIGHT_BYTES / (float(found["copy_gb_s"]["median"]) * 1e9)
    return max(work, weights) * 1e3
