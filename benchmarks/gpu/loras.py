"""Cost of a LoRA: loading, unloading, and engines built for refitting."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.bundles import FIXED, build_engines, bundle_of, linked_copy, sides
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.speed import step_seconds
from benchmarks.gpu.stage import Record
from benchmarks.gpu.timing import interleaved, spread
from sd2rt.engines.bundle.engine_entry import BackendName
from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.errors import BundleError
from sd2rt.engines.weights.initializers import Weights
from sd2rt.runtime import Pipeline

RANK = 16
_STEPS = 4


def measure(settings: Settings, variant: str, backend: BackendName) -> Iterator[Record]:
    """Load a LoRA with the bundle's engines; one that cannot be refitted is compiled with the LoRA and cached."""
    yield from _changed(settings, bundle_of(settings, variant), variant, backend, "as built")


def refit(settings: Settings, variant: str, how: str) -> Iterator[Record]:
    """Compare fixed-shape TensorRT engines with the same ones built with replaceable weights."""
    plain = bundle_of(settings, variant)
    path = settings.folder / "bundles" / f"refit-{how}"
    if not _is_copy(path, plain):
        linked_copy(plain, path, lambda manifest: manifest.update(engines=[]))
    side = sides(settings, variant)[0]
    arguments = ["--batch", "1", "--rows", "guided", "--refit", how]
    arguments += [word for part in ("text_encoder", "denoiser", "decoder") for word in ("--part", part)]
    yield from build_engines(settings, path, "tensorrt", side, FIXED, arguments, set())
    with (
        Pipeline.open(plain, device="cuda", backend="tensorrt") as unchanged,
        Pipeline.open(path, device="cuda", backend="tensorrt") as refittable,
    ):
        times = interleaved(
            {
                "plain": lambda: step_seconds(unchanged, side, 1, settings.steps),
                f"refit {how}": lambda: step_seconds(refittable, side, 1, settings.steps),
            },
            settings.rounds,
        )
    for name, seconds in times.items():
        yield {
            "steps": name,
            "side": side,
            "it_s": spread((1 / s for s in seconds), 3),
            "wall_ms": spread(s * 1e3 for s in seconds),
        }
    yield from _changed(settings, path, variant, "tensorrt", f"refit {how}")


def _is_copy(path: Path, plain: Path) -> bool:
    """True if an earlier run left the copy, whose engines are kept."""
    try:
        return read_manifest(path).identity == read_manifest(plain).identity
    except BundleError:
        return False


def _changed(
    settings: Settings, path: Path, variant: str, backend: BackendName, label: str
) -> Iterator[Record]:
    """Images without, with and again without the LoRA: the first and last must be bit-equal."""
    side = sides(settings, variant)[0]
    file = write_lora(
        path, settings.folder / "loras" / f"{variant}{'-small' if settings.small else ''}.safetensors"
    )
    with Pipeline.open(path, device=settings.device, backend=backend) as pipeline:

        def latents() -> tuple[float, NDArray[np.float32]]:
            began = time.perf_counter()
            result = pipeline(
                "a lighthouse",
                num_inference_steps=_STEPS,
                seed=1,
                width=side,
                height=side,
                output_type="latent",
            ).images
            return time.perf_counter() - began, np.asarray(result)

        first, a = latents()
        _, again = latents()
        yield {
            "lora": label,
            "action": "an image before it",
            "seconds": round(first, 3),
            "bit_equal": bool((a == again).all()),
        }
        images = []
        for turn in ("first", "second"):
            began = time.perf_counter()
            lora = pipeline.load_lora(file, scale=1.0)
            loaded = time.perf_counter() - began
            elapsed, b = latents()
            images.append(b)
            yield {
                "lora": label,
                "action": f"load, {turn} time",
                "seconds": round(loaded, 3),
                "next_image_s": round(elapsed, 3),
                "file_bytes": file.stat().st_size,
                "layers": len(lora.layers),
                "changed": float(np.linalg.norm(b - a) / np.linalg.norm(a)),
                "bit_equal": None if len(images) < 2 else bool((images[0] == images[1]).all()),
            }
            began = time.perf_counter()
            pipeline.unload_lora()
            unloaded = time.perf_counter() - began
            elapsed, back = latents()
            yield {
                "lora": label,
                "action": f"unload, {turn} time",
                "seconds": round(unloaded, 3),
                "next_image_s": round(elapsed, 3),
                "bit_equal": bool((a == back).all()),
            }


def write_lora(bundle: Path, path: Path) -> Path:
    """Write a random LoRA for the denoiser's attention projections, in PEFT's layout; keeps an existing file."""
    if path.is_file():
        return path
    opened = open_bundle(bundle)
    entry = opened.manifest.parts["denoiser"]
    shapes = Weights.of(entry, opened.file(entry.onnx)).shapes()
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in shapes.items():
        if len(shape) == 2 and any(f".{key}." in name for key in ("to_q", "to_k", "to_v", "to_out")):
            layer = f"unet.{name.removesuffix('.weight')}"
            rank = min(RANK, *shape)
            down = rng.standard_normal((rank, shape[1])) / shape[1] ** 0.5
            up = rng.standard_normal((shape[0], rank)) * 0.02
            tensors[f"{layer}.lora_A.weight"] = down.astype(np.float32)
            tensors[f"{layer}.lora_B.weight"] = up.astype(np.float32)
    header, end = {}, 0
    for key, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            stream.write(tensor.tobytes())
    return path
