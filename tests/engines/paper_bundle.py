"""Bundles whose parts are a few random bytes, enough for tests of hashing, writing and recovery.

As a program, it is the builder that tests kill: ``paper_bundle.py FOLDER OLD NEW`` builds ``FOLDER/<n>/bundle`` for
n = 0, 1, ... and dies in each just before the n-th change to the file system, until a build completes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sd2rt.engines.bundle.files import describe
from sd2rt.engines.bundle.manifest import SCHEMA_VERSION, Embeddings, Manifest, Source, Tokenizer
from sd2rt.engines.bundle.model_kinds import KINDS, PartName
from sd2rt.engines.bundle.part_interface import Dimensions, interface
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.bundle.sampler_config import NoiseConfig, default_sampler
from sd2rt.engines.bundle.schema import Latents, Part
from sd2rt.engines.bundle.writer import BundleWriter

OnPart = Callable[[BundleWriter, PartName], None]

PARTS: tuple[PartName, ...] = ("text_encoder", "denoiser", "decoder")
OLD, NEW = hashlib.sha256(b"old").hexdigest(), hashlib.sha256(b"new").hexdigest()


def make_bundle(
    target: Path,
    key: str = NEW,
    *,
    replace: bool = False,
    part_bytes: int = 1000,
    table_rows: int = 4,
    needed_bytes: int = 0,
    on_part: OnPart = lambda writer, name: None,
) -> list[PartName]:
    """Drive the writer like export does, and return the parts that were built; ``on_part`` is called in mid-part."""
    built: list[PartName] = []
    with BundleWriter(target, key, needed_bytes=needed_bytes, replace=replace) as writer:
        parts = {}
        for name in PARTS:
            part = writer.part(name)
            if part is None:
                writer.start_part(name)
                built.append(name)
                (writer.folder / name).mkdir()
                content = hashlib.shake_256(f"{key}/{name}".encode()).digest(part_bytes)
                (writer.folder / name / "model.onnx").write_bytes(content)
                on_part(writer, name)
                (writer.folder / name / "initializers.json").write_text("{}")
                part = describe_part(writer.folder, name)
                writer.keep_part(name, part)
            parts[name] = part
        (writer.folder / "tokenizer.json").write_text(f'{{"key": "{key}"}}')
        np.save(writer.folder / "embeddings.npy", np.zeros((table_rows, 2), np.float32))
        writer.finish(describe_bundle(writer.folder, key, parts))
    return built


def open_key(target: Path) -> str:
    return open_bundle(target, trust_receipts=False).manifest.build_key


def describe_part(folder: Path, name: PartName) -> Part:
    files = (f"{name}/initializers.json", f"{name}/model.onnx")
    tensors = interface(name, Dimensions(text_width=2, channels=4, factor=8), "float32")
    return Part(
        precision="fp32",
        onnx=files[1],
        onnxruntime=files[1],
        files=tuple(describe(folder, file) for file in files),
        opset=23,
        inputs=tensors.inputs,
        outputs=tensors.outputs,
        initializers=files[0],
        parameters=7,
    )


def describe_bundle(folder: Path, key: str, parts: dict[PartName, Part]) -> Manifest:
    return Manifest(
        schema_version=SCHEMA_VERSION,
        sd2rt_version="0.1.0",
        build_key=key,
        name="paper",
        family="stable-diffusion-2",
        variant="base",
        tasks={"text-to-image": KINDS["base"].tasks["text-to-image"]},
        conditions=(),
        low_resolution=None,
        depth_input=None,
        precision="fp32",
        native_sizes=((64, 64),),
        noise=NoiseConfig(
            num_train_timesteps=1000,
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="epsilon",
        ),
        sampler=default_sampler("pndm"),
        latents=Latents(channels=4, vae_factor=8, scaling_factor=0.18215),
        tokenizer=Tokenizer(file=describe(folder, "tokenizer.json"), max_length=77, bos=1, eos=2, pad=0),
        embeddings=Embeddings(
            file=describe(folder, "embeddings.npy"), tokens=4, width=2, dtype="float32", layers=1
        ),
        parts=parts,
        source=Source(name="paper", release=None, files={"unet.safetensors": key}),
        exporter={"torch": "2.13.0"},
        license="Apache-2.0",
    )


class DyingAt:
    """Kill the process just before the n-th call of the wrapped functions."""

    def __init__(self, moment: int) -> None:
        self.left = moment

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            return call(*args, **options)

        return called

    def install(self) -> None:
        for name in ("mkdir", "rename", "replace", "rmdir", "unlink", "write_bytes", "write_text"):
            setattr(Path, name, self.before(getattr(Path, name)))
        for module, name in ((shutil, "rmtree"), (np, "save"), (os, "fsync")):
            setattr(module, name, self.before(getattr(module, name)))


def die_everywhere(folder: Path, old: bool) -> None:
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    moment = 0
    while True:
        target = folder / str(moment) / "bundle"
        target.parent.mkdir(parents=True)
        if old:
            make_bundle(target, OLD)
        child = os.fork()
        if child == 0:
            DyingAt(moment).install()
            make_bundle(target, NEW, replace=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            return
        moment += 1


if __name__ == "__main__":
    die_everywhere(Path(sys.argv[1]), old=sys.argv[2] == "old")
