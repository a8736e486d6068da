"""Compare a bundle with PyTorch: every part on the same inputs, and whole images from the same seeds."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.bundle.model_kinds import TASKS, UNTILED, InputName, PartName, TaskName
from sd2rt.engines.bundle.reader import Bundle, open_bundle
from sd2rt.engines.bundle.sampler_config import STATE_SLOTS
from sd2rt.engines.bundle.schema import Precision, shape_of
from sd2rt.engines.bundle.temporary import scratch_folder
from sd2rt.engines.errors import BuildError, CheckpointError
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeEngine
from sd2rt.export.build import part_module
from sd2rt.export.checkpoints.checkpoint import Checkpoint
from sd2rt.export.reference import reference_pipeline

Arrays = Mapping[str, NDArray[Any]]

PART_BOUNDS: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2}
"""Upper bound of a part's error, relative to its output's largest value."""
PSNR_BOUNDS: dict[Precision, float] = {"fp32": 55.0, "fp16": 35.0}
"""Lower bound of a whole image's peak signal-to-noise ratio, in dB."""
PIXEL_BOUND = 2
"""Upper bound of the difference of a pixel value, of 255, between fp32 images."""

PROMPT = "a lighthouse on a cliff at dusk, oil painting"
# B, R, P, L, h, w: one sample guided by two prompts and one unguided sample in a batch, on latents that are not
# square. M: context tokens of a tile.
_DIMS = {"B": 2, "R": 4, "P": 2, "L": 77, "M": 5, "h": 8, "w": 16}


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison: its error or ratio, and the bound that it has to meet."""

    what: str
    error: float
    bound: float
    unit: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Report:
    """All comparisons of a bundle."""

    bundle: str
    precision: Precision
    rows: tuple[Row, ...]

    @property
    def holds(self) -> bool:
        return all(row.holds for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        report = {**asdict(self), "holds": self.holds}
        for row in report["rows"]:
            # JSON has no infinity, the ratio of two identical images.
            row["error"] = row["error"] if math.isfinite(row["error"]) else None
        return report

    def as_text(self) -> str:
        width = max(len(row.what) for row in self.rows)
        lines = [f"{self.bundle}, {self.precision}, against PyTorch fp32"]
        lines += [
            f"{row.what:<{width}}  {row.error:>9.3g} {row.unit:<10} bound {row.bound:<8g} "
            f"{'ok' if row.holds else 'EXCEEDED'}"
            for row in self.rows
        ]
        return "\n".join(lines)


def compare(
    bundle: Path,
    checkpoint: Checkpoint,
    *,
    steps: int = 10,
    say: Callable[[str], None] = lambda message: None,
) -> Report:
    """Compare every part, and whole images of every task, with and without guidance, with PyTorch in float32.

    Raises:
        BundleError: the bundle cannot be opened.
        CheckpointError: the bundle was made from another checkpoint.
        BuildError: generating an image failed.
    """
    opened = open_bundle(bundle)
    if opened.manifest.source.files != checkpoint.source:
        raise CheckpointError(
            f"{opened.path} was built from {opened.manifest.source.name}, whose weights differ from those of "
            f"{checkpoint.name}: name the checkpoint that it was built from"
        )
    rows = []
    for part in opened.manifest.parts:
        say(f"comparing the {part.replace('_', ' ')}")
        rows += compare_part(opened, checkpoint, part)
    say(f"comparing whole images, {steps} steps")
    rows += _compare_images(opened, checkpoint, steps)
    return Report(opened.manifest.name, opened.manifest.precision, tuple(rows))


def compare_part(bundle: Bundle, checkpoint: Checkpoint, part: PartName) -> list[Row]:
    """Compare a part with its PyTorch module on seeded inputs: one row for each output."""
    entry = bundle.manifest.parts[part]
    inputs = part_inputs(bundle, part)
    with OnnxRuntimeEngine(entry, bundle.file(entry.onnxruntime)) as engine:
        session = engine.session({k: _DIMS[k] for k in _symbols(bundle, part)})
        for name, array in inputs.items():
            session.buffers[name].write(array)
        session.launch()
        outputs = {tensor.name: session.buffers[tensor.name].read() for tensor in entry.outputs}
    module = part_module(checkpoint, part, "fp32")
    with torch.no_grad():
        arguments = [
            torch.from_numpy(inputs[t.name].astype(np.float32) if t.dtype == "float16" else inputs[t.name])
            for t in entry.inputs
        ]
        result = module(*arguments)
    references = result if isinstance(result, tuple) else (result,)
    rows, bound = [], PART_BOUNDS[entry.precision]
    for tensor, reference in zip(entry.outputs, references, strict=True):
        expected = reference.numpy().astype(np.float64)
        error = float(np.abs(outputs[tensor.name] - expected).max() / np.abs(expected).max())
        rows.append(Row(f"{part}: {tensor.name}", error, bound, "of max", error <= bound))
    return rows


def part_inputs(bundle: Bundle, part: PartName) -> dict[str, NDArray[Any]]:
    """Seeded inputs of a part, at sizes that distinguish its axes."""
    rng = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {}
    for tensor in bundle.manifest.parts[part].inputs:
        shape = shape_of(tensor, _DIMS)
        if tensor.dtype != "int64":
            arrays[tensor.name] = rng.standard_normal(shape).astype(tensor.dtype)
    if part == "text_encoder":
        arrays["skip"] = np.array([0])
    if part == "denoiser":
        b = _DIMS["B"]
        arrays["timestep"] = np.array([801, 21], np.float32)
        # Guided with rescale, and unguided: both cases of the graph.
        arrays["guidance"] = np.array([[7.5, 0.7], [1, 0]], np.float32)
        arrays["weights"] = np.eye(STATE_SLOTS, dtype=np.float32)[:1].repeat(b, 0)
        arrays["row"] = np.array([0, 0, 0, 1])
        arrays["uncond"], arrays["cond"] = np.array([0, 3]), np.array([[1, 2], [3, 3]])
        arrays["shares"] = np.array([[0.9, 0.4], [1, 0]], np.float32)
        if bundle.manifest.low_resolution is not None:
            arrays["noise_level"] = np.array([20, 3])
    if part in UNTILED:
        # Blend given and own statistics, to exercise both. Variances and weights are positive.
        arrays["given"] = np.array([0.5], np.float32)
        arrays["stats"][..., 1] = np.exp(arrays["stats"][..., 1])
        arrays["weights"] = rng.uniform(0.1, 1, arrays["weights"].shape).astype(np.float32)
    return arrays


def _symbols(bundle: Bundle, part: PartName) -> set[str]:
    entry = bundle.manifest.parts[part]
    return {item.split("*")[-1] for tensor in entry.inputs for item in tensor.shape if isinstance(item, str)}


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two 8-bit images, in dB; infinite if they are identical."""
    error = float(np.square(a.astype(np.float64) - b.astype(np.float64)).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def _compare_images(bundle: Bundle, checkpoint: Checkpoint, steps: int) -> list[Row]:
    manifest = bundle.manifest
    rows = []
    for task in manifest.tasks:
        pipeline = reference_pipeline(checkpoint, task=task)
        pictures = sample_pictures(manifest, task)
        if "strength" in pictures and steps == 1:
            # At a strength below 1, a schedule of one step would have no step left.
            pictures["strength"] = 1.0
        width, height = manifest.native_sizes[0]
        sides = {"width": width, "height": height} if task in ("text-to-image", "inpainting") else {}
        for mode, guidance in (("guided", 7.5), ("unguided", 1.0)):
            reference = pipeline(
                PROMPT,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(1)],
                **pictures,
                **sides,
            ).images[0]
            expected, image = np.asarray(reference), _run(bundle.path, steps, guidance, pictures)
            label = f"{task} {width}x{height}, {steps} steps, {mode}"
            ratio, bound = psnr(image, expected), PSNR_BOUNDS[manifest.precision]
            rows.append(Row(label, ratio, bound, "dB", ratio >= bound))
            if manifest.precision == "fp32":
                worst = int(np.abs(image.astype(int) - expected.astype(int)).max())
                rows.append(Row(label, worst, PIXEL_BOUND, "of 255", worst <= PIXEL_BOUND))
    return rows


def sample_pictures(manifest: Manifest, task: TaskName) -> dict[str, Any]:
    """A task's inputs other than the prompt, by diffusers' names: a landscape, a disk as mask, a strength."""
    width, height = manifest.native_sizes[0]
    if task == "upscaling":
        width, height = (side // manifest.latents.vae_factor for side in (width, height))
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    hill = y > 0.6 + 0.15 * np.sin(7 * x)
    colours = np.stack([0.3 + 0.5 * y, 0.5 + 0.3 * np.cos(5 * x), 0.9 - 0.6 * y], axis=-1)
    colours[hill] = colours[hill] * 0.4
    image = Image.fromarray((colours * 255).round().astype(np.uint8))
    disk = (x - 0.45) ** 2 + (y - 0.5) ** 2 < 0.09
    mask = Image.fromarray(disk.astype(np.uint8) * 255)
    inputs: dict[InputName, Any] = {"image": image, "mask_image": mask, "strength": 0.7}
    accepted = {*TASKS[task].required} | ({"strength"} & {*TASKS[task].optional})
    return {name: value for name, value in inputs.items() if name in accepted}


_OPTIONS = {"image": "--image", "mask_image": "--mask", "strength": "--strength"}


def _run(bundle: Path, steps: int, guidance: float, pictures: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Generate an image as users do: with ``sd2rt run``, in a process without PyTorch."""
    with scratch_folder("parity") as folder:
        path = folder / "image.png"
        command = [sys.executable, "-P", "-m", "sd2rt", "run", str(bundle), PROMPT, "--json"]
        command += ["--seed", "1", "--steps", str(steps), "--guidance", str(guidance), "--output", str(path)]
        for name, value in pictures.items():
            if isinstance(value, Image.Image):
                value.save(folder / f"{name}.png")
                command += [_OPTIONS[name], str(folder / f"{name}.png")]
            else:
                command += [_OPTIONS[name], str(value)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise BuildError(f"{bundle} could not generate an image: {result.stderr.strip()}")
        assert json.loads(result.stdout)["path"] == str(path)
        return np.asarray(Image.open(path).convert("RGB"))
