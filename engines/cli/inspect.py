"""`sd2rt inspect`: print a summary of a bundle's manifest."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sd2rt.engines.bundle.manifest import Manifest, read_manifest
from sd2rt.engines.bundle.model_kinds import TASKS, Defaults
from sd2rt.engines.bundle.reader import locate
from sd2rt.engines.bundle.shared_files import shared_bytes
from sd2rt.engines.cli.options import BundleArgument, JsonOption
from sd2rt.engines.console import add_row, table_console
from sd2rt.engines.cuda.gpu_info import sm_number
from sd2rt.engines.printable import printable

if TYPE_CHECKING:
    from rich.table import Table


def inspect(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Show the contents of a bundle, from its manifest alone."""
    path = locate(bundle)
    manifest = read_manifest(path)
    shared = shared_bytes(path, manifest.files)
    if as_json:
        extra = {"path": str(path), "identity": manifest.identity, "shared_bytes": shared}
        if manifest.other_vae:
            extra["vae"] = manifest.other_vae
        if manifest.merged_loras:
            extra["merged_loras"] = manifest.merged_loras
        print(json.dumps({**extra, **manifest.model_dump(mode="json")}))
        return
    from rich.table import Table

    console = table_console(140)
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in _facts(manifest, shared).items():
        add_row(facts, name, value)
    parts = Table(
        "part",
        "precision",
        "parameters",
        "MB",
        "operators",
        "inputs",
        "outputs",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for name, part in manifest.parts.items():
        inputs, outputs = (
            ", ".join(f"{t.name} {t.dtype}[{','.join(map(str, t.shape))}]" for t in side)
            for side in (part.inputs, part.outputs)
        )
        size = sum(file.size for file in part.files) / 1e6
        add_row(
            parts,
            name,
            part.precision,
            f"{part.parameters:,}",
            f"{size:.1f}",
            f"opset {part.opset}",
            inputs,
            outputs,
        )
    console.print(printable(path), soft_wrap=True)
    console.print(facts)
    console.print()
    console.print(parts)
    if manifest.engines:
        console.print()
        console.print(_engines(manifest))


def _engines(manifest: Manifest) -> Table:
    from rich.table import Table

    names = ("engine", "backend", "for", "precision", "MB", "profiles")
    table = Table(*names, box=None, padding=(0, 2, 0, 0))
    for entry in manifest.engines:
        gpus = ", ".join(f"sm_{sm_number(item)}" for item in entry.compute_capabilities)
        add_row(
            table,
            f"{entry.part} {entry.label}",
            f"{entry.backend} {entry.version}",
            f"{gpus} and later" if entry.hardware_compatible else gpus,
            entry.precision,
            f"{entry.file.size / 1e6:.1f}",
            ", ".join(profile.name for profile in entry.profiles),
        )
    return table


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _defaults(task: Defaults) -> str:
    """Format the defaults of a task."""
    guidance = f"guidance {task.guidance_scale:g}" if task.guidance_scale > 1 else "no guidance"
    facts = [_count(task.num_inference_steps, "step"), guidance]
    facts += [f"strength {task.strength:g}"] if task.strength is not None else []
    facts += [f"noise level {task.noise_level}"] if task.noise_level is not None else []
    return ", ".join(facts)


def _conditions(manifest: Manifest) -> dict[str, str]:
    """Describe the denoiser's extra inputs, if any, and their preprocessing."""
    facts = {}
    if manifest.conditions:
        facts["conditions"] = ", ".join(
            f"{item.name} ({_count(item.channels, 'channel')})" for item in manifest.conditions
        )
    if manifest.depth_input is not None:
        width, height = manifest.depth_input.size
        facts["depth"] = f"estimated at {width}x{height}, {manifest.depth_input.resample}"
    if manifest.low_resolution is not None:
        facts["noise level"] = f"at most {manifest.low_resolution.max_noise_level}"
    return facts


def _preview(manifest: Manifest) -> dict[str, str]:
    if manifest.preview is None:
        return {}
    return {"previews": f"by a matrix, off by {manifest.preview.error:.2f} of 1 in the root mean square"}


def _scores(manifest: Manifest) -> dict[str, str]:
    denoiser = manifest.parts.get("denoiser")
    if denoiser is None or denoiser.largest_scores is None:
        return {}
    form = "float32, as float16 ends at 65504" if denoiser.attends_in_float32 else "float16"
    return {"attention": f"scores up to {denoiser.largest_scores:.4g}, computed in {form}"}


def _vae(manifest: Manifest) -> dict[str, str]:
    files = ", ".join(f"{name} ({sha256[:12]})" for name, sha256 in manifest.other_vae.items())
    return {"VAE": f"{files}, instead of the checkpoint's"} if files else {}


def _loras(manifest: Manifest) -> dict[str, str]:
    merged = manifest.merged_loras
    if not merged:
        return {}
    return {"LoRAs": ", ".join(f"{name} ({sha256[:12]})" for name, sha256 in merged.items()) + ", merged"}


def _facts(manifest: Manifest, shared: int) -> dict[str, str]:
    noise, sampler, latents = manifest.noise, manifest.sampler, manifest.latents
    sizes = ", ".join(f"{width}x{height}" for width, height in manifest.native_sizes)
    if manifest.low_resolution is None:
        sizes += f"; others in multiples of {latents.size_multiple}"
    return {
        "name": manifest.name,
        "identity": manifest.identity,
        "model": f"{manifest.family} {manifest.source.release or '2.x'}, kind {manifest.variant}",
        **{name: _defaults(manifest.supported[name]) for name in TASKS if name in manifest.supported},
        **_conditions(manifest),
        "precision": manifest.precision,
        **_scores(manifest),
        "sizes": sizes,
        "prediction": noise.prediction_type,
        "noise": f"{noise.beta_schedule} {noise.beta_start:g} to {noise.beta_end:g}, "
        f"{noise.num_train_timesteps} timesteps",
        "sampler": f"{sampler.name}, {sampler.spacing} spacing, offset {sampler.steps_offset}",
        "latents": f"{latents.channels} channels, 1/{latents.vae_factor} of the pixels, "
        f"scale {latents.scaling_factor:g}",
        **_preview(manifest),
        "tokens": f"{manifest.embeddings.tokens} x {manifest.embeddings.width} {manifest.embeddings.dtype}",
        "source": manifest.source.name,
        **_vae(manifest),
        **_loras(manifest),
        "made by": f"sd2rt {manifest.sd2rt_version}; "
        + ", ".join(f"{name} {version}" for name, version in manifest.exporter.items()),
        "license": ", ".join((manifest.license, *(file.path for file in manifest.license_files))),
        "engines": ", ".join(sorted({f"{entry.backend} {entry.version}" for entry in manifest.engines}))
        or "none",
        "stored": f"{sum(file.size for file in manifest.files) / 1e6:.1f} MB in {len(manifest.files)} files, "
        f"{shared / 1e6:.1f} MB of them shared with other bundles",
    }
