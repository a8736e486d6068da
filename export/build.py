"""Build a bundle from a checkpoint: export and release one network at a time, and write the manifest last."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sd2rt.engines.bundle.manifest import (
    SCHEMA_VERSION,
    Manifest,
    PreviewMatrix,
    Source,
)
from sd2rt.engines.bundle.model_kinds import KINDS, UNTILED, PartName, with_defaults
from sd2rt.engines.bundle.part_interface import Dimensions, Interface, interface
from sd2rt.engines.bundle.schema import Latents, Part, Precision, exceeds_half
from sd2rt.engines.bundle.sizes import check_sides
from sd2rt.engines.bundle.writer import BuildResult, BundleWriter, build_key, find_built
from sd2rt.engines.interface import Float32Array
from sd2rt.engines.preview import fit_preview
from sd2rt.engines.printable import printable
from sd2rt.engines.weights.graph_archive import GRAPH_REVISION
from sd2rt.export.checkpoints.checkpoint import Checkpoint
from sd2rt.export.checkpoints.networks import skeleton
from sd2rt.export.checkpoints.pipeline_configs import NetworkName
from sd2rt.export.graphs.attention_scores import largest_scores
from sd2rt.export.graphs.cuda_forms.forms import DEFAULT_FORMS, FORMS_REVISION
from sd2rt.export.graphs.depth_module import DepthEstimator
from sd2rt.export.graphs.graph_cache import installed_exporters, make_part, packaged_exporters, packaged_file
from sd2rt.export.graphs.onnx_part import OPSET
from sd2rt.export.graphs.part_modules import Decoder, Denoiser, Encoder, TextEncoder
from sd2rt.export.graphs.tiled_graph import tiled_part
from sd2rt.export.graphs.tiled_modules import TiledDecoder, TiledEncoder
from sd2rt.export.host_files import (
    DTYPES,
    NUMPY_DTYPES,
    write_embeddings,
    write_license_files,
    write_tokenizer,
)

_LOG = logging.getLogger(__name__)

_EXPORTERS = ("torch", "diffusers", "transformers", "onnx", "onnxscript")

Progress = Callable[[str, float], None]
"""Progress callback: the name of the part being built, and the fraction of it that is done, 0 to 1."""


def build(
    checkpoint: Checkpoint,
    target: Path,
    *,
    precision: Precision = "fp32",
    sizes: Sequence[tuple[int, int]] = (),
    steps: int | None = None,
    guidance: float | None = None,
    replace: bool = False,
    again: bool = False,
    progress: Progress = lambda part, fraction: None,
) -> BuildResult:
    """Build ``checkpoint`` into a bundle at ``target``.

    Args:
        precision: dtype of the networks. Latents, the arithmetic around the UNet, and parts that overflow in
            fp16 (``fp32_parts`` in the table of kinds) are float32 in either case.
        sizes: native sizes to record, (width, height) in pixels, the default first; empty for the
            checkpoint's native size.
        steps: default steps to record for all tasks; None for the checkpoint's.
        guidance: default guidance scale to record.
        replace: overwrite a different bundle at ``target``; an identical, intact one is kept.
        again: rebuild even an identical, intact bundle.
        progress: called with each part's name and the fraction of it that is done.

    Raises:
        BuildError: the target may not be replaced, another build is running, the disk is full, or export failed.
        CheckpointError: a weight is missing or damaged.
    """
    target = target.absolute()
    checkpoint = dataclasses.replace(checkpoint, tasks=with_defaults(checkpoint.tasks, steps, guidance))
    native = tuple(sizes) or ((checkpoint.native_size, checkpoint.native_size),)
    for width, height in native:
        check_sides(width, height)
    interfaces = part_interfaces(checkpoint, precision)
    packaged = packaged_exporters(packaged_graphs(checkpoint, precision, interfaces).values())
    exporter = {name: (packaged or {}).get(name) or importlib.metadata.version(name) for name in _EXPORTERS}
    version = importlib.metadata.version("sd2rt")
    # Read once: each call assembles a folder's tokenizer from its files.
    tokenizer = checkpoint.tokenizer_json()
    facts = key_facts(checkpoint, tokenizer, precision, exporter)
    if precision == "fp16" and packaged is None:
        # Other bundles have no such graph, and keep their keys.
        facts["cuda_forms"] = [FORMS_REVISION, *DEFAULT_FORMS]
    key = build_key(facts, native, version)
    existing, damaged = find_built(target, key)
    if existing is not None and not again:
        _LOG.info("%s is intact: kept", target)
        return BuildResult(target, existing, fresh=False)
    _LOG.info("building %s from %s in %s", target, printable(checkpoint.name), precision)
    start = time.monotonic()
    space = estimated_bytes(checkpoint, precision)
    # A damaged bundle of the same key is rebuilt without --replace: nothing can be lost.
    with BundleWriter(target, key, needed_bytes=space, replace=replace or again or damaged) as writer:
        kind = KINDS[checkpoint.variant]
        exporters = packaged or installed_exporters()
        parts = {
            name: _part(writer, checkpoint, name, precision, interfaces[name], exporters, progress)
            for name in kind.parts
        }
        progress("bundle", 0.0)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            sd2rt_version=version,
            build_key=key,
            name=os.path.basename(os.path.realpath(target)),
            family="stable-diffusion-2",
            variant=checkpoint.variant,
            tasks=checkpoint.tasks,
            conditions=kind.conditions,
            low_resolution=checkpoint.low_resolution,
            depth_input=checkpoint.depth_input,
            precision=precision,
            native_sizes=native,
            noise=checkpoint.noise,
            sampler=checkpoint.sampler,
            latents=_latents(checkpoint),
            tokenizer=write_tokenizer(writer.folder, checkpoint, tokenizer),
            embeddings=write_embeddings(writer.folder, checkpoint, precision),
            parts=parts,
            source=Source(name=checkpoint.name, release=checkpoint.release, files=checkpoint.source),
            exporter=exporter,
            license=checkpoint.license,
            preview=_preview(checkpoint),
            license_files=write_license_files(writer.folder, checkpoint),
        )
        writer.finish(manifest)
        progress("bundle", 1.0)
    _LOG.info("built %s in %.1f s", target, time.monotonic() - start)
    return BuildResult(target, manifest, fresh=True)


_MODULES: dict[PartName, Callable[[Checkpoint, torch.dtype], torch.nn.Module]] = {
    "text_encoder": lambda checkpoint, dtype: TextEncoder(checkpoint.text_encoder(dtype)),
    "denoiser": lambda checkpoint, dtype: Denoiser(checkpoint.unet(dtype)),
    "decoder": lambda checkpoint, dtype: Decoder(checkpoint.vae(dtype)),
    "encoder": lambda checkpoint, dtype: Encoder(checkpoint.vae(dtype)),
    "tiled_decoder": lambda checkpoint, dtype: TiledDecoder(checkpoint.vae(dtype)),
    "tiled_encoder": lambda checkpoint, dtype: TiledEncoder(checkpoint.vae(dtype)),
    "depth_estimator": lambda checkpoint, dtype: DepthEstimator(checkpoint.depth_estimator(dtype)),
}
_NETWORKS: dict[PartName, NetworkName] = {
    "text_encoder": "text_encoder",
    "denoiser": "unet",
    "decoder": "vae",
    "encoder": "vae",
    "tiled_decoder": "vae",
    "tiled_encoder": "vae",
    "depth_estimator": "depth_estimator",
}


def part_module(checkpoint: Checkpoint, part: PartName, precision: Precision) -> torch.nn.Module:
    """The PyTorch module that ``part`` is exported from."""
    return _MODULES[part](checkpoint, DTYPES[precision]).eval()


def network_of(part: PartName) -> NetworkName:
    """The checkpoint's network that ``part`` is exported from."""
    return _NETWORKS[part]


def part_precision(checkpoint: Checkpoint, part: PartName, precision: Precision) -> Precision:
    """The precision of ``part`` in a bundle of ``precision``: fp32 for parts that overflow in fp16."""
    return "fp32" if part in KINDS[checkpoint.variant].fp32_parts else precision


def part_interfaces(checkpoint: Checkpoint, precision: Precision) -> dict[PartName, Interface]:
    """Inputs and outputs of each part of a checkpoint's bundle."""
    dimensions = _dimensions(checkpoint)
    return {
        name: interface(name, dimensions, NUMPY_DTYPES[part_precision(checkpoint, name, precision)])
        for name in KINDS[checkpoint.variant].parts
    }


def packaged_graphs(
    checkpoint: Checkpoint, precision: Precision, interfaces: Mapping[PartName, Interface]
) -> dict[PartName, str]:
    """Archive name of each part's graphs in the package, which has those of the demo."""
    return {
        name: packaged_file(
            name,
            tensors,
            part_precision(checkpoint, name, precision),
            checkpoint.parts.config(_NETWORKS[name]),
        )
        for name, tensors in interfaces.items()
    }


def _part(
    writer: BundleWriter,
    checkpoint: Checkpoint,
    name: PartName,
    precision: Precision,
    tensors: Interface,
    exporters: Mapping[str, str],
    progress: Progress,
) -> Part:
    part = writer.part(name)
    if part is not None:
        _LOG.info("%s: kept from an interrupted build", name)
    else:
        start = time.monotonic()
        progress(name, 0.0)
        writer.start_part(name)
        network_precision = part_precision(checkpoint, name, precision)
        if name in UNTILED:
            half = writer.part(UNTILED[name])
            assert half is not None
            levels = len(checkpoint.parts.config("vae")["block_out_channels"])
            part = tiled_part(half, writer.folder, tensors, _dimensions(checkpoint).norms[name], levels)
            _LOG.info("%s: derived from %s in %.1f s", name, UNTILED[name], time.monotonic() - start)
        else:
            scores = _attention_scores(checkpoint, name, network_precision)
            module = part_module(checkpoint, name, network_precision)
            part = make_part(
                name,
                module,
                tensors,
                writer.folder,
                network_precision,
                checkpoint.parts.config(_NETWORKS[name]),
                exporters,
                lambda fraction: progress(name, fraction),
                float32_scores=scores is not None and exceeds_half(scores),
            ).model_copy(update={"largest_scores": scores})
        writer.keep_part(name, part)
    progress(name, 1.0)
    return part


def _attention_scores(checkpoint: Checkpoint, name: PartName, precision: Precision) -> float | None:
    """Measure the largest attention scores of a float16 denoiser; None for other parts.

    They decide whether attention is computed in float32, not ``upcast_attention`` in its configuration: float32 would
    cost engines their fused attention, and the measurement tells whether it is needed.
    """
    if name != "denoiser" or precision != "fp16":
        return None
    start = time.monotonic()
    scores = largest_scores(checkpoint.unet(torch.float32))
    _LOG.info("denoiser: attention scores up to %.4g, in %.1f s", scores, time.monotonic() - start)
    # To digits that no processor's rounding changes: they are part of the manifest and its checksum.
    return float(f"{scores:.3g}")


def _preview(checkpoint: Checkpoint) -> PreviewMatrix:
    # In float32 for every precision: the module that was exported may be fp16, or the part may be kept from a build
    # that was interrupted.
    decoder = part_module(checkpoint, "decoder", "fp32")

    def decode(latents: Float32Array) -> Float32Array:
        with torch.inference_mode():
            image: Float32Array = decoder(torch.from_numpy(latents)[None])[0].numpy()
        return image

    start = time.monotonic()
    fitted = fit_preview(decode, _latents(checkpoint).channels)
    _LOG.info("preview: fitted in %.1f s, with an error of %.3f", time.monotonic() - start, fitted.error)
    return fitted


def _dimensions(checkpoint: Checkpoint) -> Dimensions:
    kind, latents, depth = KINDS[checkpoint.variant], _latents(checkpoint), checkpoint.depth_input
    config = checkpoint.parts.config("vae")
    vae = skeleton("vae", config)
    return Dimensions(
        text_width=int(checkpoint.parts.config("text_encoder")["hidden_size"]),
        channels=latents.channels,
        factor=latents.vae_factor,
        extra=sum(condition.channels for condition in kind.conditions),
        class_label=kind.class_label,
        depth_size=(0, 0) if depth is None else depth.size,
        norms={
            name: [
                f"{half}.{path}"
                for path, module in vae.get_submodule(half).named_modules()
                if isinstance(module, torch.nn.GroupNorm)
            ]
            for name, half in UNTILED.items()
        },
        groups=config["norm_num_groups"],
        tokens_width=config["block_out_channels"][-1],
    )


def _latents(checkpoint: Checkpoint) -> Latents:
    config = checkpoint.parts.config("vae")
    return Latents(
        channels=config["latent_channels"],
        vae_factor=2 ** (len(config["block_out_channels"]) - 1),
        # The published files omit it; diffusers' default is SD's value.
        scaling_factor=config.get("scaling_factor", 0.18215),
        side_multiple=1,
    )


def key_facts(
    checkpoint: Checkpoint, tokenizer: str, precision: Precision, exporter: Mapping[str, str]
) -> dict[str, Any]:
    """Everything that a bundle's contents depend on, but for its sizes and sd2rt's version, as JSON values."""
    texts = {name: hashlib.sha256(content).hexdigest() for name, content in checkpoint.license_files.items()}
    return {
        # Without them, keys are those of earlier versions.
        **({"license_files": texts} if texts else {}),
        "source": checkpoint.source,
        "release": checkpoint.release,
        "license": checkpoint.license,
        "tokenizer": hashlib.sha256(tokenizer.encode()).hexdigest(),
        "variant": checkpoint.variant,
        "tasks": {name: defaults.model_dump(mode="json") for name, defaults in checkpoint.tasks.items()},
        "noise": checkpoint.noise.model_dump(mode="json"),
        "sampler": checkpoint.sampler.model_dump(mode="json"),
        "configs": [checkpoint.parts.config(_NETWORKS[part]) for part in KINDS[checkpoint.variant].parts],
        "low_resolution": checkpoint.low_resolution and checkpoint.low_resolution.model_dump(mode="json"),
        "depth_input": checkpoint.depth_input and checkpoint.depth_input.model_dump(mode="json"),
        "precision": precision,
        "opset": OPSET,
        "graphs": GRAPH_REVISION,
        "schema": SCHEMA_VERSION,
        "exporter": dict(exporter),
    }


def estimated_bytes(checkpoint: Checkpoint, precision: Precision) -> int:
    """Estimated bundle size in bytes: its weights, and a tenth more for graphs and the tokenizer."""
    # Each network counts once: encoder and decoder are halves of the same VAE.
    networks = {
        _NETWORKS[part]: part_precision(checkpoint, part, precision)
        for part in KINDS[checkpoint.variant].parts
    }
    weights = sum(
        DTYPES[network_precision].itemsize
        * sum(p.numel() for p in skeleton(name, checkpoint.parts.config(name)).parameters())
        for name, network_precision in networks.items()
    )
    return int(weights * 1.1) + (8 << 20)
