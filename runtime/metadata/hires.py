"""Translate AUTOMATIC1111's hires fix to a second pass."""

from __future__ import annotations

from typing import Any

from sd2rt.engines.bundle.sizes import SIZE_MULTIPLE, check_sides, parse_size
from sd2rt.engines.errors import RequestError
from sd2rt.engines.printable import shown
from sd2rt.runtime.metadata.hires_upscalers import METHODS
from sd2rt.runtime.metadata.imported import ImportedSettings
from sd2rt.runtime.metadata.sampler_names import find_sampler
from sd2rt.runtime.request.second_pass import LATENT_METHODS, SecondPass

_MAX_FACTOR = 64.0


def add_hires(settings: ImportedSettings, values: dict[str, str]) -> None:
    """Add the second pass, whose settings are taken from ``values``; or note that it is left out, and why.

    It starts from the enlarged result with the same seed, and noise of the new size.
    """
    scale, resize = values.pop("Hires upscale", None), values.pop("Hires resize", None)
    strength, steps = values.pop("Denoising strength", None), values.pop("Hires steps", None)
    upscaler = values.pop("Hires upscaler", "Latent")
    second = ImportedSettings(settings.program)
    second.add_number("Denoising strength", "strength", strength, float)
    if steps not in (None, "0"):
        second.add_number("Hires steps", "num_inference_steps", steps, int)
    second.add_number("Hires CFG Scale", "guidance_scale", values.pop("Hires CFG Scale", None), float)
    _add_sampler(second, values)
    for name in ("prompt", "negative prompt"):
        text = values.pop(f"Hires {name}", None)
        if text:
            second.fields[name.replace(" ", "_")] = text
    try:
        size = _size(settings.fields, scale, resize)
        # Its latents have an eighth of the sides, rounded down.
        sides = {name: side // SIZE_MULTIPLE * SIZE_MULTIPLE for name, side in size.items()}
        check_sides(**sides)
        second.fields |= sides
        if "strength" not in second.fields:
            raise ValueError("its denoising strength is missing")
    except (RequestError, ValueError, OverflowError) as error:
        named = f"Hires upscale: {scale}" if resize is None else f"Hires resize: {resize}"
        settings.notes.append(f"the second pass ({shown(named)}) is left out: {error}")
        settings.notes += second.notes
        return
    method = METHODS.get(upscaler.casefold())
    if method is None:
        settings.notes.append(
            f"Hires upscaler {shown(upscaler)} is not available: Lanczos is used; the picture differs"
        )
        method = "lanczos"
    if sides != size and method not in LATENT_METHODS:
        settings.notes.append(
            f"AUTOMATIC1111 enlarges to {'x'.join(map(str, size.values()))} and crops the latents of that: "
            f"pixels are enlarged to {'x'.join(map(str, sides.values()))}; the picture differs"
        )
    settings.notes += second.notes
    settings.second_pass = SecondPass(method, second.fields)


def _add_sampler(second: ImportedSettings, values: dict[str, str]) -> None:
    label, schedule = values.pop("Hires sampler", None), values.pop("Hires schedule type", None)
    if label is None:
        second.note_ignored("Hires schedule type", schedule)
        return
    found = find_sampler(label, "Automatic" if schedule is None else schedule)
    if found is None:
        second.notes.append(f"Hires sampler {shown(label)} is not supported: that of the first pass is used")
        return
    second.fields |= {"schedule": None, "sampler_options": None, "grid": "diffusers"} | found.fields


def _size(first: dict[str, Any], scale: str | None, resize: str | None) -> dict[str, int]:
    """Width and height to which the first picture is enlarged.

    Raises:
        ValueError: they cannot be read, or the picture is cropped.
    """
    if "width" not in first:
        raise ValueError("the size of the first is missing or not supported")
    width, height = first["width"], first["height"]
    if resize is not None:
        wide, high = parse_size(resize)
        # One side of 0 follows the other.
        sides = (wide or high * width // height, high or wide * height // width)
        if wide and high and wide * height != high * width:
            raise ValueError("its picture is cropped, which is not supported")
    else:
        factor = float(scale or "nan")
        if not 0 < factor <= _MAX_FACTOR:
            raise ValueError("it is not a factor")
        sides = (int(width * factor), int(height * factor))
    return {"width": sides[0], "height": sides[1]}
