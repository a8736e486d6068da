"""Files shared by all peers: a checkpoint and its bundle, created unless given."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.catalogue import Peer
from benchmarks.peers.contest import log
from benchmarks.peers.job import Job
from benchmarks.recording import process

FULL_BYTES = 35_000_000_000
"""Disk space for the checkpoint, the bundle, and the networks in the formats of three other runtimes."""


@dataclass(frozen=True, slots=True)
class Site:
    """Paths of the shared files."""

    folder: Path
    checkpoint: Path
    bundle: Path

    @property
    def weights_bytes(self) -> int:
        """Size of the checkpoint's weight files."""
        return sum(file.stat().st_size for file in self.checkpoint.rglob("*.safetensors"))

    def job(self, peer: Peer, prompt: str, size: int | None, threads: int) -> Job:
        """Create a peer's job; ``size`` is the side of its images (default: the checkpoint's native size)."""
        unet, vae = (_config(self.checkpoint, part) for part in ("unet", "vae"))
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        side = size or unet["sample_size"] * factor
        # Peers that differ only at run time share one export.
        kind = (peer.adapter, peer.options.get("dtype", "float32"), str(side))
        return Job(
            adapter=peer.adapter,
            checkpoint=str(self.checkpoint),
            bundle=str(self.bundle),
            prepared=str(self.folder / "prepared" / "-".join(kind)),
            prompt=prompt,
            width=side,
            height=side,
            channels=unet["in_channels"],
            vae_factor=factor,
            threads=threads,
            options=peer.options,
        )


def settle(
    folder: Path,
    configs: str,
    env: Mapping[str, str],
    *,
    checkpoint: Path | None = None,
    bundle: Path | None = None,
    precision: str = "fp32",
) -> Site:
    """Create the checkpoint and the bundle unless they are given or left by an earlier run.

    Raises:
        CommandError: a command failed.
    """
    (folder / "prepared").mkdir(parents=True, exist_ok=True)
    if checkpoint is None:
        checkpoint = folder / f"checkpoint-{configs}"
        # Key names of the published files: older releases of transformers accept no others.
        write = [sys.executable, "-m", "benchmarks.checkpoint", "--legacy-keys", "--configs", configs]
        _once(checkpoint, [*write], env)
    if bundle is None:
        bundle = folder / f"bundle-{configs}-{precision}"
        _once(bundle, process.sd2rt("build", checkpoint, "--precision", precision, "-o"), env)
    return Site(folder.resolve(), checkpoint.resolve(), bundle.resolve())


def _once(path: Path, command: list[str], env: Mapping[str, str]) -> None:
    """Run ``command`` with an output path as its last argument; rename the output to ``path`` once complete."""
    if path.exists():
        return
    log(f"{path.name}: writing")
    unfinished = path.with_name(f"{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    process.measure([*command, str(unfinished)], env)
    unfinished.rename(path)


def _config(checkpoint: Path, part: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((checkpoint / part / "config.json").read_text())
    return config
