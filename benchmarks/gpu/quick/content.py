"""The kit's content: graphs without weights, moments of the weights, fp32 outputs, the UNet's configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from benchmarks.gpu.quick import tiny_engine
from benchmarks.gpu.quick.predicted import write_forms
from benchmarks.gpu.quick.reference import PARTS, Reference, one_step
from benchmarks.gpu.quick.weights import BUNDLE, copy_graphs, measure_moments, weight_files, write_weights

if TYPE_CHECKING:
    from sd2rt.engines.bundle.model_kinds import PartName

KIT = "kit.json"


def make_content(half: Path, full: Path, unet_config: Path, folder: Path, workdir: Path) -> dict[str, Any]:
    """Fill ``folder`` from the fp16 and fp32 bundles of one checkpoint; its ``kit.json``.

    Both bundles get the same drawn weights, as copies in ``workdir``, and the fp32 one computes the reference.
    """
    moments = measure_moments(half)
    copies = {name: workdir / name for name in ("fp16", "fp32")}
    for copy, source in zip(copies.values(), (half, full), strict=True):
        copy_graphs(source, copy)
    hashes = write_weights(copies["fp16"], moments)
    write_weights(copies["fp32"], moments)
    for copy in copies.values():
        update_hashes(copy)
    folder.mkdir(parents=True, exist_ok=True)
    copy_graphs(copies["fp16"], folder / BUNDLE)
    manifest = json.loads((half / "bundle.json").read_text())
    side = manifest["native_sizes"][0][0]
    write_forms(copies["fp16"], side, folder)
    write_references(copies["fp16"], copies["fp32"], side, folder)
    kit = {
        "side": side,
        "factor": manifest["latents"]["vae_factor"],
        "moments": moments,
        "first_mb_sha256": hashes,
        "unet": json.loads(unet_config.read_text()),
        "tiny_engine": tiny_engine.build(folder),
    }
    (folder / KIT).write_text(json.dumps(kit) + "\n")
    return kit


def update_hashes(bundle: Path) -> None:
    """Put the drawn files' hashes into the manifest."""
    from sd2rt.engines.bundle.checksum import CHECKSUM, checksum
    from sd2rt.engines.bundle.files import sha256

    path = bundle / "bundle.json"
    manifest = json.loads(path.read_text())
    hashes = {file.path: sha256(bundle / file.path) for file in weight_files(bundle)}
    listed = [file for part in manifest["parts"].values() for file in part["files"]]
    for file in (*listed, manifest["embeddings"]["file"]):
        file["sha256"] = hashes.get(file["path"], file["sha256"])
    manifest["engines"] = []
    manifest[CHECKSUM] = checksum(manifest)
    path.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def write_references(half: Path, full: Path, side: int, folder: Path) -> None:
    """Run each part of the fp32 bundle once on the CPU, on inputs of the fp16 one's types."""
    from benchmarks.gpu.part_inputs import dims_of, part_inputs
    from sd2rt.engines.bundle.reader import open_bundle

    bundle, manifest = open_bundle(full), open_bundle(half).manifest
    for name in PARTS:
        part = cast("PartName", name)
        dims = dims_of(manifest, part, side)
        inputs = part_inputs(manifest, part, dims)
        if part == "denoiser":
            inputs = one_step(inputs)
        Reference(inputs, run_part(bundle, part, dims, inputs, "cpu")).save(folder / f"{name}.npz")


def run_part(bundle: Any, part: PartName, dims: dict[str, int], inputs: Any, device: Any) -> Any:
    """A part's outputs by sd2rt's ONNX Runtime backend, by name."""
    from sd2rt.engines.backends import open_backend
    from sd2rt.engines.interface import Device

    backend = open_backend(bundle, Device(device), "onnxruntime", needed=(part,), cuda_graph=False)
    try:
        with backend.open(part) as engine:
            session = engine.session(dims)
            for name, array in inputs.items():
                buffer = session.buffers[name]
                buffer.write(array.astype(buffer.host.dtype))
            session.launch()
            outputs = bundle.manifest.parts[part].outputs
            return {tensor.name: session.buffers[tensor.name].read().copy() for tensor in outputs}
    finally:
        backend.close()
