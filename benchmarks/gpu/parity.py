"""Compare every part, and whole images, with PyTorch on the same device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.bundles import bundle_of, sides
from benchmarks.gpu.part_inputs import dims_of, part_inputs
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.stage import CannotRunError, Record
from sd2rt.engines.backends import open_backend
from sd2rt.engines.bundle.engine_entry import BackendName
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import Bundle, open_bundle
from sd2rt.engines.errors import BundleError, Sd2rtError
from sd2rt.engines.interface import Device

LATENTS_BOUNDS = {"fp16": 2e-2, "fp32": 1e-3}
"""Bounds on the relative error of an image's latents; the fp32 bound is only a guide."""
STEPS = 10
PROMPT = "a lighthouse on a cliff at dusk, oil painting"
SEED = 1


def compare(
    settings: Settings, variant: str, backend: BackendName, precision: Literal["fp16", "fp32"] = "fp16"
) -> Iterator[Record]:
    """Compare with PyTorch in fp32; PyTorch's own error in fp16 is recorded as a yardstick."""
    import torch

    from sd2rt.export.checkpoints.checkpoint import open_checkpoint

    path, source = bundle_of(settings, variant, precision), settings.checkpoint(variant)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise CannotRunError(f"torch {torch.__version__} sees no GPU")
    # A TF32 reference would be no more precise than fp16.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    bundle, checkpoint = open_bundle(path), open_checkpoint(str(source), variant=variant)
    for side in sides(settings, variant, precision):
        for part in bundle.manifest.parts:
            # One image uses the fixed-shape engine, four use a bucketed one.
            for batch in (1, 4) if part == "denoiser" else (1,):
                yield from _part(settings, bundle, checkpoint, part, side, batch, backend)
        yield from _images(settings, bundle, checkpoint, side, backend)


def _part(
    settings: Settings,
    bundle: Bundle,
    checkpoint: Any,
    part: PartName,
    side: int,
    batch: int,
    backend: BackendName,
) -> Iterator[Record]:
    import torch

    from sd2rt.export.build import part_module
    from sd2rt.export.parity import PART_BOUNDS

    entry = bundle.manifest.parts[part]
    dims = dims_of(bundle.manifest, part, side, batch)
    inputs = part_inputs(bundle.manifest, part, dims)
    try:
        opened = open_backend(bundle, Device(settings.device), backend, needed=(part,), cuda_graph=False)
        try:
            with opened.open(part) as engine:
                session = engine.session(dims)
                for name, array in inputs.items():
                    session.buffers[name].write(array)
                session.launch()
                outputs = {tensor.name: session.buffers[tensor.name].read() for tensor in entry.outputs}
        finally:
            opened.close()
    except BundleError as refusal:
        # Tiled parts have engines for large images only.
        yield {"part": part, "side": side, "batch": batch, "refused": str(refusal)}
        return
    references: dict[str, list[NDArray[np.float64]]] = {}
    kinds: tuple[Literal["fp32", "fp16"], ...] = (
        ("fp32", "fp16") if entry.precision == "fp16" and settings.device == "cuda" else ("fp32",)
    )
    for kind in kinds:
        module = part_module(checkpoint, part, kind).to(settings.device)
        arguments = [
            torch.from_numpy(
                inputs[t.name].astype(np.float32)
                if t.dtype == "float16" and kind == "fp32"
                else inputs[t.name]
            ).to(settings.device)
            for t in entry.inputs
        ]
        with torch.no_grad():
            result = module(*arguments)
        tensors = result if isinstance(result, tuple) else (result,)
        references[kind] = [tensor.cpu().numpy().astype(np.float64) for tensor in tensors]
        del module, arguments, result, tensors
    bound = PART_BOUNDS[entry.precision]
    for index, tensor in enumerate(entry.outputs):
        expected = references["fp32"][index]
        error = _of_max(outputs[tensor.name], expected)
        record: Record = {
            "part": part,
            "output": tensor.name,
            "side": side,
            "batch": batch,
            "precision": entry.precision,
            "error_of_max": error,
            "bound": bound,
            "holds": error <= bound,
            "relative_error": _relative(outputs[tensor.name], expected),
        }
        if "fp16" in references:
            record["torch_fp16_of_max"] = _of_max(references["fp16"][index], expected)
            record["torch_fp16_relative"] = _relative(references["fp16"][index], expected)
        yield record


def _images(
    settings: Settings, bundle: Bundle, checkpoint: Any, side: int, backend: BackendName
) -> Iterator[Record]:
    import torch
    import transformers

    from sd2rt.export.parity import PIXEL_BOUND, PSNR_BOUNDS, psnr
    from sd2rt.export.reference import reference_pipeline
    from sd2rt.runtime import Pipeline

    transformers.logging.set_verbosity_error()
    precision = bundle.manifest.precision
    if "text-to-image" not in bundle.manifest.tasks:
        return
    reference = reference_pipeline(checkpoint, task="text-to-image").to(settings.device)

    def theirs(guidance: float, kind: str) -> Any:
        return reference(
            PROMPT,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            width=side,
            height=side,
            generator=[torch.Generator().manual_seed(SEED)],
            output_type=kind,
        ).images

    ours: dict[str, tuple[Any, Any] | str] = {}
    scales = {"guided": 7.5, "unguided": 1.0}
    with Pipeline.open(bundle.path, device=settings.device, backend=backend) as pipeline:
        for label, guidance in scales.items():
            options: dict[str, Any] = {
                "num_inference_steps": STEPS, "guidance_scale": guidance, "width": side, "height": side,
                "seed": SEED,
            }  # fmt: skip
            try:
                latents = pipeline(PROMPT, output_type="latent", **options).images
                ours[label] = latents, np.asarray(pipeline(PROMPT, **options).images[0])
            except Sd2rtError as refusal:
                ours[label] = str(refusal)
    expected = {
        label: (theirs(guidance, "latent").float().cpu().numpy(), np.asarray(theirs(guidance, "pil")[0]))
        for label, guidance in scales.items()
    }
    # The yardstick: the same pipeline in fp16, on a GPU, where PyTorch has kernels for it.
    yardstick: dict[str, tuple[Any, Any]] = {}
    if settings.device == "cuda" and precision == "fp16":
        reference = reference.to(torch.float16)
        yardstick = {
            label: (theirs(guidance, "latent").float().cpu().numpy(), np.asarray(theirs(guidance, "pil")[0]))
            for label, guidance in scales.items()
        }
    for label, (latents, image) in expected.items():
        name = f"{side}x{side}, {STEPS} steps, {label}"
        result = ours[label]
        if isinstance(result, str):
            yield {"image": name, "refused": result}
            continue
        ratio, error = psnr(result[1], image), _relative(result[0], latents)
        holds = ratio >= PSNR_BOUNDS[precision] and error <= LATENTS_BOUNDS[precision]
        worst = int(np.abs(result[1].astype(int) - image.astype(int)).max())
        if precision == "fp32":
            holds = holds and worst <= PIXEL_BOUND
        record: Record = {
            "image": name,
            "precision": precision,
            "psnr_db": ratio if math.isfinite(ratio) else None,
            "psnr_bound": PSNR_BOUNDS[precision],
            "latents_error": error,
            "latents_bound": LATENTS_BOUNDS[precision],
            "max_pixel": worst,
            "holds": holds,
        }
        if label in yardstick:
            ratio = psnr(yardstick[label][1], image)
            record["torch_fp16_psnr_db"] = ratio if math.isfinite(ratio) else None
            record["torch_fp16_latents_error"] = _relative(yardstick[label][0], latents)
        yield record


def _of_max(values: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.abs(values - expected).max() / np.abs(expected).max())


def _relative(values: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(
        np.linalg.norm(values.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64))
    )
