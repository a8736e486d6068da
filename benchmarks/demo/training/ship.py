"""Put the trained demo into the package: ``python -m benchmarks.demo.training.ship --folder WEIGHTS``.

Weights are rounded to float16 and stored once if several kinds share them. Unfinished stages are refused unless
``--unfinished`` is given. ``--unpack`` does the reverse: it recreates a training folder from the package.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.demo.training.text import Captions
from sd2rt.engines.bundle.model_kinds import ModelKind
from sd2rt.engines.demo.files import DEMO_NAMES, TOKEN_IDS, TOKEN_TABLE, WEIGHTS
from sd2rt.engines.errors import CheckpointError
from sd2rt.export.checkpoints.demo import weight_file
from sd2rt.export.checkpoints.networks import check_weights
from sd2rt.export.checkpoints.pipeline_configs import NetworkName
from sd2rt.export.checkpoints.tiny_configs import DEMOS

LIMIT_BYTES = 24_000_000
"""Size limit of all weights, which are in every wheel and clone."""


@dataclass(frozen=True, slots=True)
class Shipped:
    """A file of the package, and the training stage it comes from."""

    stage: str
    module: str
    kind: ModelKind
    part: NetworkName
    prefix: str = ""
    """Prefix of the module's keys in the stage's file."""

    @property
    def file(self) -> str:
        return weight_file(self.kind, self.part)


WHITENED = ("vae", "vae-x4")
"""Stages that are finished only once their latents are whitened."""

EARLIER = {"decoder": "vae", "v": "first"}
"""Stages that continue another stage's whole network, with that stage."""

SHIPPED = (
    Shipped("words", "text_encoder", "base", "text_encoder"),
    Shipped("decoder", "vae", "base", "vae", "vae."),
    Shipped("vae-x4", "vae", "upscaler", "vae", "vae."),
    Shipped("depth-estimator", "depth_estimator", "depth", "depth_estimator"),
    *(Shipped(kind, "unet", kind, "unet") for kind in DEMO_NAMES.values()),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo.training.ship", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--folder", type=Path, required=True, help="training folder")
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    parser.add_argument("--record", type=Path, help="write a JSON record of the training")
    parser.add_argument("--unfinished", action="store_true", help="also ship unfinished stages")
    parser.add_argument("--unpack", action="store_true", help="recreate the training folder from the package")
    options = parser.parse_args()
    if options.unpack:
        _unpack(options.folder, options.output)
        return 0
    states = {shipped: _state(options.folder, shipped.stage) for shipped in SHIPPED}
    earlier = {stage: _state(options.folder, stage) for stage in EARLIER.values()}
    missing = [shipped.stage for shipped, state in states.items() if state is None]
    unfinished = [
        shipped.stage for shipped, state in states.items() if state and not _finished(shipped, state)
    ]
    if missing or (unfinished and not options.unfinished):
        print(f"not finished: {', '.join(missing + unfinished)}: train them first", file=sys.stderr)
        return 1
    options.output.mkdir(parents=True, exist_ok=True)
    total = 0
    for shipped, state in states.items():
        assert state is not None
        path = options.output / shipped.file
        save_file(_half(shipped, state["modules"][shipped.module]), path, {"format": "pt"})
        total += path.stat().st_size
        print(f"{path.stat().st_size / 1e6:7.2f} MB  {path}")
    print(f"{total / 1e6:7.2f} MB in total, limit {LIMIT_BYTES / 1e6:.0f} MB")
    if options.record is not None:
        stages = earlier | {shipped.stage: state for shipped, state in states.items()}
        records = [_record(options.folder, stage, state) for stage, state in stages.items() if state]
        options.record.write_text(json.dumps({"bytes": total, "stages": records}, indent=1) + "\n")
    return 0 if total <= LIMIT_BYTES else 1


def _state(folder: Path, stage: str) -> dict[str, Any] | None:
    """Load the saved state of a stage; None if there is none."""
    path = folder / f"{stage}.pt"
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _finished(shipped: Shipped, state: dict[str, Any]) -> bool:
    # A finished stage is saved without its optimizer.
    return state["optimizer"] is None and (shipped.stage not in WHITENED or bool(state.get("whitened")))


def _unpack(folder: Path, package: Path) -> None:
    """Write missing stage files at step 0, so that training can start from the packaged weights."""
    folder.mkdir(parents=True, exist_ok=True)
    stages = [(shipped, shipped.stage) for shipped in SHIPPED]
    stages += [(shipped, EARLIER[stage]) for shipped, stage in stages if stage in EARLIER]
    for shipped, stage in stages:
        path = folder / f"{stage}.pt"
        if path.exists():
            continue
        half = load_file(package / shipped.file)
        half.pop(TOKEN_IDS, None)
        weights = {shipped.prefix + key: tensor.float() for key, tensor in half.items()}
        state = {"modules": {shipped.module: weights}, "optimizer": None, "step": 0, "seconds": 0.0}
        torch.save(state | {"whitened": True}, path)
        print(path)


def _half(shipped: Shipped, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert a network's weights to the package's form; SystemExit if they do not fit the demo."""
    half = {
        key.removeprefix(shipped.prefix): tensor.to(torch.float16, memory_format=torch.contiguous_format)
        for key, tensor in weights.items()
        if key.startswith(shipped.prefix) and tensor.is_floating_point()
    }
    unfit = sorted(key for key, tensor in half.items() if not tensor.isfinite().all())
    if unfit:
        raise SystemExit(f"{shipped.stage}: {unfit[0]} exceeds the range of float16")
    shapes = {key: tuple(tensor.shape) for key, tensor in half.items()}
    config = DEMOS[shipped.kind].part(shipped.part)
    if shipped.part == "text_encoder":
        half = {key.removeprefix("text_model."): tensor for key, tensor in half.items()}
        ids = torch.tensor(Captions().rows, dtype=torch.int32)
        if len(half[TOKEN_TABLE]) != len(ids):
            raise SystemExit(f"{shipped.stage}: {len(half[TOKEN_TABLE])} token rows, expected {len(ids)}")
        shapes = {key: tuple(tensor.shape) for key, tensor in half.items()}
        shapes[TOKEN_TABLE] = (config["vocab_size"], config["hidden_size"])
        half[TOKEN_IDS] = ids
    try:
        check_weights(shipped.part, config, shapes, shipped.stage)
    except CheckpointError as error:
        raise SystemExit(str(error)) from None
    return half


def _record(folder: Path, stage: str, state: dict[str, Any]) -> dict[str, Any]:
    """Recipe, duration and final losses of a stage."""
    facts = {"stage": stage, "steps": state["step"], "seconds": round(state["seconds"], 1)}
    facts |= {key: state[key] for key in ("recipe", "seed") if key in state}
    lines = list(_log(folder / f"{stage}.log"))
    last = {key: value for key, value in lines[-1].items() if key not in ("step", "seconds")} if lines else {}
    return facts | {"losses": last}


def _log(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        for line in path.read_text().splitlines():
            yield json.loads(line)


if __name__ == "__main__":
    sys.exit(main())
