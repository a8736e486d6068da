"""AUTOMATIC1111's generation parameters: the text that its web interface stores in PNG files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sd2rt.engines.json_text import parse_json
from sd2rt.runtime.metadata.hires_upscalers import UPSCALER_NAMES
from sd2rt.runtime.metadata.sampler_names import SAMPLERS, SCHEDULE_NAMES, SCHEDULES

_NEGATIVE = "Negative prompt:"
_KEY = re.compile(r"\s*([A-Za-z0-9][\w \-/]*?)\s*:[ \t]*")
_MIN_SETTINGS = 3
"""A line with fewer ``key: value`` pairs is part of the prompt, which may contain colons too."""
_USUAL = frozenset({"Steps", "Sampler", "CFG scale", "Seed", "Size", "Model", "Model hash"})


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parsed generation parameters."""

    prompt: str
    negative_prompt: str
    values: dict[str, str]
    """Settings by name, with their unparsed values."""


def write_parameters(facts: dict[str, Any], version: str) -> str:
    """Format the facts of :class:`~sd2rt.runtime.metadata.png.Facts` as AUTOMATIC1111's text."""
    lines = [facts["prompt"] or ""]
    if facts["negative_prompt"]:
        lines.append(f"{_NEGATIVE} {facts['negative_prompt']}")
    schedule = facts["schedule"]
    request: dict[str, Any] = facts["request"]
    grid = request.get("grid")
    names = SCHEDULES
    if grid == "a1111":
        names = {"automatic": "Automatic"} | {own: label for label, own in SCHEDULE_NAMES.values()}
    # AUTOMATIC1111 has this form as a sampler of its own.
    options = request.get("sampler_options") or {}
    heun = facts["sampler"] == "dpmpp-2m-sde" and options.get("solver_type") == "heun"
    second: dict[str, Any] = facts.get("second_pass") or {}
    changed: dict[str, Any] = second.get("request", {})
    scale, interval = facts["guidance_scale"], request.get("guidance_interval")
    # AUTOMATIC1111 reads a single number: write the scale of the first step.
    scales = list(scale) if isinstance(scale, list | tuple) else [scale]
    values: dict[str, Any] = {
        "Steps": facts["steps"],
        "Sampler": SAMPLERS.get(facts["sampler"], facts["sampler"]) + (" Heun" if heun else ""),
        "Schedule type": names.get(schedule or ""),
        "CFG scale": scales[0],
        "Seed": facts["seed"],
        "Size": "x".join(map(str, second.get("from", (facts["width"], facts["height"])))),
        "Spacing": None if schedule in names else schedule,
        "Eta": facts["eta"] or None,
        "Denoising strength": changed.get("strength", facts.get("strength")),
        "Hires resize": f"{changed['width']}x{changed['height']}" if second else None,
        "Hires steps": changed.get("num_inference_steps"),
        "Hires CFG Scale": changed.get("guidance_scale"),
        "Hires upscaler": UPSCALER_NAMES.get(second.get("method", "")),
        "CFG scales": "/".join(f"{scale:g}" for scale in scales) if len(scales) > 1 else None,
        "CFG interval": None if interval is None else _levels(*interval),
        "CFG rescale": facts["guidance_rescale"] or None,
        "Grid": grid,
        "Prompt syntax": request.get("prompt_syntax"),
        # AUTOMATIC1111 counts from 1: its 1 skips no layer.
        "Clip skip": request["clip_skip"] + 1 if "clip_skip" in request else None,
        "Variation seed": request.get("variation_seed") if "variation_strength" in request else None,
        "Variation seed strength": request.get("variation_strength"),
        # Without this field AUTOMATIC1111 uses the GPU's generator.
        "RNG": "CPU" if request.get("rng", "cpu") == "cpu" else None,
        "Model hash": facts["identity"][:10],
        "Model": facts["bundle"],
        "Version": f"sd2rt {version}",
    }
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in values.items() if value is not None))
    return "\n".join(lines)


def _levels(low: float, high: float | None) -> str:
    return f"{low:g}/{'inf' if high is None else f'{high:g}'}"


def _quoted(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:\n"') else text


def parse_parameters(text: str) -> Parameters:
    """Parse a text into prompt, negative prompt and settings.

    A text without a line of settings is all prompt, and has no values: it can be a description, or another program's.
    """
    lines = text.strip().split("\n")
    # Old versions appended remarks after the settings.
    last = max(
        (number for number, line in enumerate(lines) if line.startswith("Steps: ")), default=len(lines) - 1
    )
    values = dict(_settings(lines[last]))
    if not _are_settings(values):
        last, values = len(lines), {}
    prompts: tuple[list[str], list[str]] = ([], [])
    negative = False
    for line in map(str.strip, lines[:last]):
        if line.startswith(_NEGATIVE):
            negative, line = True, line.removeprefix(_NEGATIVE).strip()
        prompts[negative].append(line)
    return Parameters("\n".join(prompts[0]), "\n".join(prompts[1]), values)


def _are_settings(values: dict[str, str]) -> bool:
    """Return True for the pairs of a line of settings: prose can have colons and commas too."""
    steps = values.get("Steps", "")
    return len(values) >= _MIN_SETTINGS and (
        steps.isdecimal() or len(_USUAL.intersection(values)) >= _MIN_SETTINGS
    )


def _settings(line: str) -> Iterator[tuple[str, str]]:
    """Yield the ``key: value`` pairs of a line. Values with commas, colons or newlines are JSON strings."""
    position, unclosed = 0, False
    while position < len(line):
        key = _KEY.match(line, position, position + 100)
        if key is None:
            # Not a pair: skip to the next comma.
            position = _past_comma(line, position)
            continue
        start = key.end()
        if not unclosed and line.startswith(("[", "{"), start) and (end := _end_of_json(line, start)) > 0:
            # Civitai's resources are not quoted.
            yield key[1], line[start:end]
            position = _past_comma(line, end)
            continue
        end = -1 if unclosed or not line.startswith('"', start) else _closing_quote(line, start)
        if end < 0:
            # If one quotation is unclosed, all later ones are too: do not search again, which would be quadratic.
            unclosed = unclosed or line.startswith('"', start)
            position = _past_comma(line, start)
            yield key[1], line[start:position].removesuffix(",").strip()
        else:
            position = _past_comma(line, end + 1)
            yield key[1], _unquoted(line[start : end + 1])


def _end_of_json(line: str, start: int) -> int:
    """Return the index after a JSON object or list, or -1."""
    try:
        return json.JSONDecoder().raw_decode(line, start)[1]
    except (ValueError, RecursionError):
        return -1


def _past_comma(line: str, start: int) -> int:
    comma = line.find(",", start)
    return len(line) if comma < 0 else comma + 1


def _closing_quote(line: str, start: int) -> int:
    """Return the index of the quote that closes the one at ``start``, or -1."""
    position = start + 1
    while position < len(line) and line[position] != '"':
        position += 2 if line[position] == "\\" else 1
    return position if position < len(line) else -1


def _unquoted(text: str) -> str:
    try:
        return str(parse_json(text))
    except ValueError:
        return text
