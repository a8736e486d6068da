"""Settings of the GPU check's stages, and paths of their files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one run, shared by all stages."""

    workdir: str
    device: Literal["cuda", "cpu"] = "cuda"
    """``cpu`` is a dry run, in which stages that need a GPU are skipped."""
    small: bool = False
    """Use tiny networks of 64x64 pixels instead of full-size ones."""
    sm: str | None = None
    """Compute capability to compile for with TensorRT for RTX; None for the GPU at hand."""
    sizes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Variants with the sides of their images in pixels; empty for the native side."""
    buckets: str = "1,4,8"
    """Batch sizes of the bucketed engines, as for ``sd2rt build --batch``."""
    batches: tuple[int, ...] = (1, 4, 8, 16)
    """Batch sizes that are timed."""
    compile_batches: tuple[int, ...] = (1,)
    """Batch sizes for which PyTorch compiles, minutes each."""
    steps: int = 20
    rounds: int = 9
    """Turns of each side of a comparison."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        values: dict[str, Any] = json.loads(text)
        values["sizes"] = tuple((name, tuple(sides)) for name, sides in values["sizes"])
        for name in ("batches", "compile_batches"):
            values[name] = tuple(values[name])
        return cls(**values)

    @property
    def folder(self) -> Path:
        return Path(self.workdir)

    def checkpoint(self, variant: str) -> Path:
        """Folder of a variant's random weights in the diffusers layout."""
        return self.folder / "checkpoints" / self._name(variant)

    def bundle(self, variant: str, precision: Literal["fp16", "fp32"] = "fp16") -> Path:
        return self.folder / "bundles" / f"{self._name(variant)}-{precision}"

    def _name(self, variant: str) -> str:
        return f"small-{variant}" if self.small else variant
