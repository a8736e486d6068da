"""Render the page on marks of generated pictures."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Any

from benchmarks.page import markdown
from benchmarks.page.latest import NotMeasuredError, Result, Results
from benchmarks.page.markdown import number, spread

TEMPLATE = Path(__file__).resolve().parent.parent / "provenance.md.in"


def page(results: Results, folder: Path) -> str:
    """Render docs/provenance.md; its links are relative to ``folder``."""
    try:
        result = results.newest("provenance")
        texts = {
            "costs": _costs(result, folder),
            "checks": _checks(result.value),
            "survives": _survives(result.value),
        }
    except NotMeasuredError as missing:
        texts = dict.fromkeys(("costs", "checks", "survives"), f"Not measured yet: {missing}.")
    return Template(TEMPLATE.read_text()).substitute(texts)


def _costs(result: Result, folder: Path) -> str:
    value = result.value
    rows = [
        [case["mark"], case["format"], spread(case["milliseconds"]), case["bytes"]] for case in value["costs"]
    ]
    return (
        f"On one 512x512 picture; milliseconds of CPU are medians of {value['repetitions']}, with the range. The "
        "bytes are those that the file grows by; of the watermark they are of the compressed pixels. Its time "
        "includes reading it back, from the encoded file of JPEG and WebP.\n\n"
        + markdown.table(("mark", "format", "ms", "bytes"), rows)
        + f"\n\n{markdown.origin(result, folder)}"
    )


def _checks(value: dict[str, Any]) -> str:
    rows = [[case["check"], spread(case["milliseconds"])] for case in value["checks"]]
    return (
        "[Safety checks](safety.md) of one 512x512 picture; milliseconds of CPU, all cores together, are "
        f"medians of {value['check_repetitions']} in turns, with the range. `opennsfw` is loaded once, before the "
        "first picture.\n\n" + markdown.table(("check", "ms"), rows)
    )


def _survives(value: dict[str, Any]) -> str:
    marks = ("settings", "xmp", "watermark", "c2pa")
    rows = []
    for case in value["survival"]:
        count = case["pictures"]
        cells = [f"{case[mark]}/{count}" for mark in marks]
        rows.append([case["change"], case["kind"], *cells, number(case["matching_bits"])])
    header = ("change", "pictures", "settings", "XMP", "watermark", "C2PA intact", "watermark's bits, of 32")
    return (
        "Files of which each mark is still read after a change by Pillow, which keeps no metadata unless told to, "
        f"and after exiftool copied all tags of the original into the changed file. {value['pictures']}\n\n"
        + markdown.table(header, rows)
        + "\n\nThe last column is the mean; chance alone makes 16. The reference's own decoder "
        "reads the same: saturated areas cannot hold this watermark, and lossy formats, resizes and crops shift its "
        "blocks or their averages. exiftool copied no settings: it does not write text chunks of these names. "
        "A C2PA manifest is lost with every new encoding: sign the file that is published."
    )
