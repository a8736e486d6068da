"""Tables of what the demo draws, from results of :mod:`benchmarks.demo.score` and :mod:`benchmarks.demo.settings`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.page import markdown

GOALS: dict[tuple[str, str], float] = {
    ("text", "color"): 0.95,
    ("text", "shape"): 0.95,
    ("text", "place"): 0.9,
    ("text", "relation"): 0.9,
    ("negative", "negative"): 0.8,
    ("inpainting", "inpainting"): 0.9,
    ("upscaler", "upscaler"): 0.5,
}
"""By set and what is counted, the share that is aimed at."""

_WORDS: dict[tuple[str, str], str] = {
    ("text", "shape"): "shape",
    ("text", "color"): "colour",
    ("text", "size"): "size",
    ("text", "place"): "place",
    ("text", "relation"): "relation of two",
    ("text", "background"): "background",
    ("text", "things"): "number of things",
    ("text", "all"): "all that the prompt asks for",
    ("negative", "negative"): "the thing is no longer what the negative prompt names",
    ("negative", "the rest kept"): "and is still what the prompt asks for",
    ("inpainting", "inpainting"): "the mask shows the new thing, the rest stays",
    ("inpainting", "shows it"): "the mask shows it",
    ("inpainting", "the rest stays"): "the rest stays",
    ("inpainting", "outside, levels"): "change outside of the mask, of 255",
    ("inpainting", "round trip there, levels"): "the autoencoder's own there, of 255",
    ("depth", "depth"): "layout kept, colours as asked",
    ("depth", "layout"): "layout kept: overlap above 0.6",
    ("depth", "color"): "colours",
    ("depth", "overlap"): "overlap of things, mean",
    ("upscaler", "upscaler"): "nearer to the true picture than bicubic",
    ("upscaler", "PSNR, dB"): "PSNR, dB",
    ("upscaler", "PSNR of bicubic, dB"): "PSNR of bicubic, dB",
}
"""What is told, in the order of the table."""
_SET_NAMES = {
    "text": "text-to-image",
    "negative": "negative prompt",
    "inpainting": "inpainting",
    "depth": "depth",
    "upscaler": "upscaling",
}
DRAWN_SETTINGS = {
    "shape": "shape",
    "color": "colour",
    "place": "place",
    "relation": "relation",
    "all": "all that is asked",
}
"""What is told of each of several settings, and how."""


def drawn(value: Mapping[str, Any]) -> str:
    """A table with a column for each engine, and what it was measured with."""
    scores = value["scores"]
    engines = list(dict.fromkeys(score["engine"] for score in scores))
    by_place = {(score["set"], score["kind"], score["engine"]): score for score in scores}
    sampler = "each checkpoint's own sampler" if value["sampler"] is None else value["sampler"]
    upscaler = value["upscaler_guidance_scale"]
    told = (
        f"{value['steps']} steps, guidance {value['guidance_scale']:g} ({upscaler:g} in upscaling), "
        f"{sampler}, {value['precision']} on {value['device']}. "
        "In brackets: Wilson's 95 % interval, and how many were judged."
    )
    if not value["complete"]:
        told += " Interrupted: not all sets are here."
    rows = [row for name in _SET_NAMES for row in _rows(name, by_place, engines)]
    return f"{told}\n\n{markdown.table(('', 'goal', *engines, 'reached'), rows)}"


def _rows(
    name: str, scores: Mapping[tuple[str, str, str], Mapping[str, Any]], engines: list[str]
) -> Iterator[list[str]]:
    """The rows of a set, of each kind of checkpoint that it was painted with."""
    for kind in dict.fromkeys(kind for found, kind, _ in scores if found == name):
        own = [scores.get((name, kind, engine), {"counts": {}, "means": {}}) for engine in engines]
        label = f"{_SET_NAMES[name]}, {kind}" if name in ("text", "negative") else _SET_NAMES[name]
        for (owner, what), words in _WORDS.items():
            if owner != name or not any(what in score["counts"] | score["means"] for score in own):
                continue
            goal = GOALS.get((name, what))
            count = own[0]["counts"].get(what)
            yield [
                f"{label}: {words}",
                "" if goal is None else f">= {goal:.0%}",
                *(_cell(score, what) for score in own),
                "" if goal is None or count is None else _verdict(count, goal),
            ]


def _cell(score: Mapping[str, Any], what: str) -> str:
    if what in score["means"]:
        return markdown.number(score["means"][what])
    count = score["counts"].get(what)
    if count is None:
        return ""
    return _counted(count)


def _verdict(count: Mapping[str, float], goal: float) -> str:
    reached = count["share"] >= goal
    return markdown.yes(reached) + ("" if reached or count["high"] < goal else ", within its interval")


def settings(value: Mapping[str, Any]) -> str:
    """A table with a row for each of several settings."""
    rows = [
        [row["name"], *(_counted(row["counts"][what]) for what in DRAWN_SETTINGS)] for row in value["rows"]
    ]
    prompts = "All prompts" if value["limit"] is None else f"The first {value['limit']} prompts"
    told = f"{prompts}." if value["complete"] else f"{prompts}. Interrupted: not all rows are here."
    return f"{told}\n\n{markdown.table(('', *DRAWN_SETTINGS.values()), rows)}"


def _counted(count: Mapping[str, float]) -> str:
    return f"{count['share']:.1%} ({count['low']:.0%} to {count['high']:.0%} of {count['of']})"
