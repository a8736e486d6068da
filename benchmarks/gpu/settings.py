"""What the stages of the GPU check are told, and where their files lie."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self


@dataclass(frozen=True, slots=True)
class Settings:
    """One run of the check, as every stage of it sees it."""

    workdir: str
    device: Literal["cuda", "cpu"] = "cuda"
    """``cpu`` is a dry run: what needs a GPU says so."""
    small: bool = False
    """Tiny networks of 64x64 pixels in the place of full-size ones."""
    sm: str | None = None
    """Compile TensorRT for RTX for this compute capability, and not for the GPU at hand."""
    sizes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """For each variant the sides of its images in pixels; empty for its native one."""
    buckets: str = "1,4,8"
    """Batches of the bucketed engines, as ``sd2rt build --batch`` takes them."""
    batches: tuple[int, ...] = (1, 4, 8, 16)
    compile_batches: tuple[int, ...] = (1,)
    """Those for which PyTorch compiles, which takes it minutes each."""
    steps: int = 20
    rounds: int = 9
    """How often each side of a comparison has its turn."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        told: dict[str, Any] = json.loads(text)
        told["sizes"] = tuple((name, tuple(sides)) for name, sides in told["sizes"])
        for name in ("batches", "compile_batches"):
            told[name] = tuple(told[name])
        return cls(**told)

    @property
    def folder(self) -> Path:
        return Path(self.workdir)

    def checkpoint(self, variant: str) -> Path:
        """The diffusers folder of a variant's random weights."""
        return self.folder / "checkpoints" / self._name(variant)

    def bundle(self, variant: str, precision: Literal["fp16", "fp32"] = "fp16") -> Path:
        return self.folder / "bundles" / f"{self._name(variant)}-{precision}"

    def _name(self, variant: str) -> str:
        return f"small-{variant}" if self.small else variant
