"""Lower bound of a guided step's time: operations and weight bytes, counted from the ONNX graphs."""

from __future__ import annotations

import json
from pathlib import Path

STEP_TFLOP = {512: 1.6085, 768: 4.2982, 1024: 9.3500}
"""UNet operations for one guided image (two rows), by the image's side in pixels; a multiply-add counts as two."""
WEIGHT_BYTES = 1_732_000_000
"""Bytes of the UNet's 865,910,724 parameters in fp16."""


def floor_ms(facts: Path, side: int, batch: int) -> float | None:
    """Shortest possible step at the rates measured by the stage ``facts``; None if a rate or the size is unknown.

    Args:
        facts: the records file of that stage.
    """
    if side not in STEP_TFLOP or not facts.is_file():
        return None
    rates = {}
    for line in facts.read_text().splitlines():
        record = json.loads(line)
        rates[record["what"]] = record["value"]
    if "gemm_tflops" not in rates or "copy_gb_s" not in rates:
        return None
    # The copy rate counts reads and writes, both of which occupy the memory bus.
    work = STEP_TFLOP[side] * batch / float(rates["gemm_tflops"]["median"])
    weights = WEIGHT_BYTES / (float(rates["copy_gb_s"]["median"]) * 1e9)
    return max(work, weights) * 1e3
