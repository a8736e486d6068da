"""Render tables from results of :mod:`benchmarks.demo.score` and :mod:`benchmarks.demo.settings`."""

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
"""Target shares, by set and criterion."""

_LABELS: dict[tuple[str, str], str] = {
    ("text", "shape"): "shape",
    ("text", "color"): "colour",
    ("text", "size"): "size",
    ("text", "place"): "place",
    ("text", "relation"): "relation of two",
    ("text", "background"): "background",
    ("text", "things"): "number of things",
    ("text", "all"): "everything in the prompt",
    ("negative", "negative"): "the negative prompt's shape or colour is gone",
    ("negative", "the rest kept"): "and the image still matches the prompt",
    ("inpainting", "inpainting"): "the mask shows the new thing, the rest stays",
    ("inpainting", "shows it"): "the mask shows it",
    ("inpainting", "the rest stays"): "the rest stays",
    ("inpainting", "outside, levels"): "change outside the mask, of 255",
    ("inpainting", "round trip there, levels"): "change by the autoencoder alone, of 255",
    ("depth", "depth"): "layout kept, colours as requested",
    ("depth", "layout"): "layout kept: overlap above 0.6",
    ("depth", "color"): "colours",
    ("depth", "overlap"): "overlap of things, mean",
    ("upscaler", "upscaler"): "closer to the true image than bicubic",
    ("upscaler", "PSNR, dB"): "PSNR, dB",
    ("upscaler", "PSNR of bicubic, dB"): "PSNR of bicubic, dB",
}
"""Row labels by set and criterion, in the order of the table."""
_SET_NAMES = {
    "text": "text-to-image",
    "negative": "negative prompt",
    "inpainting": "inpainting",
    "depth": "depth",
    "upscaler": "upscaling",
}
SETTINGS_COLUMNS = {
    "shape": "shape",
    "color": "colour",
    "place": "place",
    "relation": "relation",
    "all": "everything",
}
"""Criteria compared across settings, with their column titles."""


def score_table(value: Mapping[str, Any]) -> str:
    """Render the scores with one column per engine, preceded by the settings."""
    scores = value["scores"]
    engines = list(dict.fromkeys(score["engine"] for score in scores))
    by_key = {(score["set"], score["kind"], score["engine"]): score for score in scores}
    sampler = "each checkpoint's own sampler" if value["sampler"] is None else value["sampler"]
    upscaler = value["upscaler_guidance_scale"]
    head = (
        f"{value['steps']} steps, guidance {value['guidance_scale']:g} ({upscaler:g} in upscaling), "
        f"{sampler}, {value['precision']} on {value['device']}. "
        "In brackets: Wilson's 95 % interval and the number judged."
    )
    if not value["complete"]:
        head += " Interrupted: some sets are missing."
    rows = [row for name in _SET_NAMES for row in _rows(name, by_key, engines)]
    return f"{head}\n\n{markdown.table(('', 'goal', *engines, 'reached'), rows)}"


def _rows(
    name: str, scores: Mapping[tuple[str, str, str], Mapping[str, Any]], engines: list[str]
) -> Iterator[list[str]]:
    """Table rows of a set, for each kind of checkpoint."""
    for kind in dict.fromkeys(kind for set_name, kind, _ in scores if set_name == name):
        of_engines = [scores.get((name, kind, engine), {"counts": {}, "means": {}}) for engine in engines]
        label = f"{_SET_NAMES[name]}, {kind}" if name in ("text", "negative") else _SET_NAMES[name]
        for (of_set, criterion), text in _LABELS.items():
            if of_set != name or not any(
                criterion in score["counts"] | score["means"] for score in of_engines
            ):
                continue
            goal = GOALS.get((name, criterion))
            count = of_engines[0]["counts"].get(criterion)
            yield [
                f"{label}: {text}",
                "" if goal is None else f">= {goal:.0%}",
                *(_cell(score, criterion) for score in of_engines),
                "" if goal is None or count is None else _verdict(count, goal),
            ]


def _cell(score: Mapping[str, Any], criterion: str) -> str:
    if criterion in score["means"]:
        return markdown.number(score["means"][criterion])
    count = score["counts"].get(criterion)
    if count is None:
        return ""
    return _share_text(count)


def _verdict(count: Mapping[str, float], goal: float) -> str:
    reached = count["share"] >= goal
    return markdown.yes(reached) + ("" if reached or count["high"] < goal else ", within its interval")


def settings_table(value: Mapping[str, Any]) -> str:
    """Render the table of settings, one row each."""
    rows = [
        [row["name"], *(_share_text(row["counts"][key]) for key in SETTINGS_COLUMNS)] for row in value["rows"]
    ]
    prompts = "All prompts" if value["limit"] is None else f"The first {value['limit']} prompts"
    head = f"{prompts}." if value["complete"] else f"{prompts}. Interrupted: some rows are missing."
    return f"{head}\n\n{markdown.table(('', *SETTINGS_COLUMNS.values()), rows)}"


def _share_text(count: Mapping[str, float]) -> str:
    return f"{count['share']:.1%} ({count['low']:.0%} to {count['high']:.0%} of {count['of']})"
