"""Settings of one quick check, shared by its stages, and the folders they use."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from benchmarks.gpu.settings import Settings

VARIANT = "2.1-base"


@dataclass(frozen=True)
class QuickSettings:
    """One run of the quick check."""

    kit: str
    """Folder with ``content/`` and ``site/``, as ``receive`` unpacks them."""
    workdir: str
    output: str
    device: Literal["cuda", "cpu"] = "cuda"
    small: bool = False
    steps: int = 20
    """Launches in a round, and steps of an image."""
    rounds: int = 3

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))

    @property
    def content(self) -> Path:
        """Graphs, reference outputs and ``kit.json``."""
        return Path(self.kit) / "content"

    @property
    def site(self) -> Path:
        """Unpacked wheels."""
        return Path(self.kit) / "site"

    @property
    def bundle(self) -> Path:
        """The fp16 bundle, whose weights the stage ``weights`` draws."""
        return Path(self.workdir) / "bundle"

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The kit's ``kit.json``."""
        facts: dict[str, Any] = json.loads((self.content / "kit.json").read_text())
        return facts

    @cached_property
    def predicted(self) -> list[dict[str, Any]]:
        """The kit's predicted times, a pair of options and form each; none in a kit of an earlier version."""
        path = self.content / "predicted.json"
        cells: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
        return cells

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The bundle's manifest as JSON."""
        manifest: dict[str, Any] = json.loads((self.bundle / "bundle.json").read_text())
        return manifest

    @property
    def side(self) -> int:
        """Width and height of the images, in pixels."""
        return int(self.facts["side"])

    def long(self) -> Settings:
        """The same for code of the long check."""
        return Settings(
            workdir=self.workdir,
            device=self.device,
            small=self.small,
            sizes=((VARIANT, (self.side,)),),
            steps=self.steps,
            rounds=self.rounds,
        )

    def shown(self, text: str | None) -> str:
        """A path without the names of this machine's folders."""
        shown = str(text)
        for folder, name in ((self.kit, "KIT"), (self.workdir, "WORKDIR"), (self.output, "OUT")):
            shown = shown.replace(folder, name)
        return shown
