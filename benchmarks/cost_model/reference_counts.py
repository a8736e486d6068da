"""Independent counts of SD2's full-size networks, which cost_model/counts.py must match."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.cost_model.counts import CountError, Counts, count_part
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import Bundle

RELATIVE = 2e-3
"""Tolerance of the operations. The table's four digits round the smallest by up to 1.1e-3; the denoiser also does
more than a UNet (the input's weighted sum, guidance and the update), which is 1e-6 of a step."""
RELATIVE_BYTES = 0.03
"""Tolerance of the bytes. The table counts products of PyTorch's modules: 2.5 % less in the depth estimator."""
_KIND_TFLOP = 6e-4
"""Additional tolerance for each kind of product: half of the table's last digit."""


@dataclass(frozen=True, slots=True)
class Reference:
    """One network at one size. Operations in 1e12 (a multiply-add is two); bytes in 1e9, with 2 bytes per element."""

    configs: str
    """The folder of export/configs."""
    part: PartName
    parameters: int
    """Parameters of the network in a bundle: a text encoder without its token table."""
    side: int
    """Side of the latents."""
    rows: int
    """UNet evaluations, or samples."""
    tflop: float
    conv: float
    linear: float
    self_attention: float
    cross_attention: float
    gigabytes: float
    """Weights plus the inputs and outputs of each product."""

    @property
    def dims(self) -> dict[str, int]:
        """Sizes of the part's symbols: one guided image, or one sample per row."""
        batch = 1 if self.part == "denoiser" else self.rows
        return {"B": batch, "R": self.rows, "P": 1, "L": 77, "h": self.side, "w": self.side}

    def check(self, counts: Counts, element_bytes: int) -> None:
        """Compare with counts from a graph; CountError names the first difference."""
        where = f"{self.part} of {self.configs} at {self.side}x{self.side}, {self.rows} rows"
        pairs = [
            ("TFLOP", counts.flops / 1e12, self.tflop, self.tflop * RELATIVE),
            ("parameters", counts.parameters, self.parameters, self.parameters * 1e-4),
            ("GB", counts.bytes / element_bytes * 2 / 1e9, self.gigabytes, self.gigabytes * RELATIVE_BYTES),
        ]
        pairs += [
            (f"TFLOP of {kind}", getattr(counts, kind) / 1e12, expected, _KIND_TFLOP + expected * RELATIVE)
            for kind in ("conv", "linear", "self_attention", "cross_attention")
            for expected in [getattr(self, kind)]
        ]
        for unit, value, expected, allowed in pairs:
            if abs(value - expected) > allowed:
                raise CountError(f"{where}: {value:.6g} {unit} counted, expected {expected:.6g}")


_UNET, _INPAINTING, _DEPTH, _X4 = (865_910_724, 865_925_124, 865_913_604, 473_398_020)
_BASE = "stable-diffusion-2-1-base"
_UPSCALER = "stable-diffusion-x4-upscaler"
_PAINTED = "stable-diffusion-2-inpainting"
_DEEP = "stable-diffusion-2-depth"

REFERENCES = (
    Reference(_BASE, "denoiser", _UNET, 64, 2, 1.6085, 0.837, 0.520, 0.245, 0.0071, 3.798),
    Reference(_BASE, "denoiser", _UNET, 96, 2, 4.2982, 1.883, 1.159, 1.240, 0.0160, 6.351),
    Reference(_BASE, "denoiser", _UNET, 128, 2, 9.3500, 3.347, 2.055, 3.920, 0.0285, 9.924),
    Reference(_BASE, "denoiser", _UNET, 64, 1, 0.8043, 0.418, 0.260, 0.122, 0.0036, 2.766),
    Reference(_PAINTED, "denoiser", _INPAINTING, 64, 2, 1.6088, 0.837, 0.520, 0.245, 0.0071, 3.798),
    Reference(_DEEP, "denoiser", _DEPTH, 64, 2, 1.6086, 0.837, 0.520, 0.245, 0.0071, 3.798),
    Reference(_UPSCALER, "denoiser", _X4, 128, 2, 2.2628, 1.620, 0.622, 0.003, 0.0171, 3.894),
    Reference(_UPSCALER, "denoiser", _X4, 256, 2, 9.0588, 6.480, 2.459, 0.052, 0.0685, 12.630),
    Reference(_BASE, "decoder", 49_490_199, 64, 1, 2.5145, 2.472, 0.009, 0.034, 0.0, 2.553),
    Reference(_BASE, "decoder", 49_490_199, 96, 1, 5.7543, 5.561, 0.019, 0.174, 0.0, 5.622),
    Reference(_BASE, "encoder", 34_163_664, 64, 1, 1.1167, 1.074, 0.009, 0.034, 0.0, 1.395),
    Reference(_BASE, "encoder", 34_163_664, 96, 1, 2.6091, 2.416, 0.019, 0.174, 0.0, 3.057),
    Reference(_UPSCALER, "decoder", 32_965_399, 128, 1, 3.0948, 2.511, 0.034, 0.550, 0.0, 2.703),
    Reference(_UPSCALER, "decoder", 32_965_399, 256, 1, 18.9762, 10.043, 0.137, 8.796, 0.0, 10.611),
    Reference(_BASE, "text_encoder", 289_794_048, 64, 2, 0.0903, 0.0, 0.089, 0.001, 0.0, 0.738),
    Reference(_BASE, "text_encoder", 289_794_048, 64, 1, 0.0451, 0.0, 0.045, 0.001, 0.0, 0.660),
    Reference(_DEEP, "depth_estimator", 121_196_289, 48, 1, 0.2552, 0.142, 0.101, 0.012, 0.0, 0.798),
)  # fmt: skip


def references_of(bundle: Bundle) -> Iterator[Reference]:
    """Yield the rows for a bundle's parts, matched by number of parameters; none for a small network."""
    for row in REFERENCES:
        part = bundle.manifest.parts.get(row.part)
        if part is not None and part.parameters == row.parameters:
            yield row


def check_bundle(bundle: Bundle) -> list[dict[str, Any]]:
    """Count a bundle's parts at every size in the table, and compare.

    Raises:
        CountError: a count differs.
    """
    checked = []
    for row in references_of(bundle):
        part = bundle.manifest.parts[row.part]
        counts = count_part(bundle.path, part, row.dims)
        row.check(counts, 2 if part.precision == "fp16" else 4)
        checked.append(
            {
                "part": row.part,
                "side": row.side,
                "rows": row.rows,
                "tflop": round(counts.flops / 1e12, 6),
                "reference_tflop": row.tflop,
            }
        )
    return checked
