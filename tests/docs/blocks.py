"""Fenced blocks of commands and Python in the docs, and the markers of those that tests do not run."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..wheels import ROOT

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")),
    "docs/examples/README.md",
)

_FENCE = re.compile(r"^( *)```(\w*)$")
_MARKER = re.compile(r"^ *<!-- not run(?P<lines>(?:, `[^`]+`)*): (?P<reason>.+) -->$")
_COMMAND = re.compile(r"^\s*(sd2rt|pip|make|python3?|cat|curl|uvicorn|docker|git|\.ci/run) ")


@dataclass(frozen=True)
class Marker:
    """A comment before a block: ``<!-- not run, `START`, ...: REASON -->``."""

    starts: tuple[str, ...]
    """Starts of the lines that are not run; empty for the whole block."""
    reason: str


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    """The line of its opening fence, from 1."""
    language: str
    text: str
    markers: tuple[Marker, ...]

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    def runnable(self) -> str:
        """Return the text without the marked lines; a marker without a matching line is an error."""
        lines = self.text.splitlines()
        for marker in self.markers:
            if not marker.starts:
                return ""
            for start in marker.starts:
                assert any(line.startswith(start) for line in lines), f"{self.place}: no line {start!r}"
        starts = tuple(start for marker in self.markers for start in marker.starts)
        return "\n".join(line for line in lines if not line.startswith(starts))


def blocks(page: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page in order, whatever their language."""
    lines = (ROOT / page).read_text().splitlines()
    markers: list[Marker] = []
    number = 0
    while number < len(lines):
        if marker := _MARKER.match(lines[number]):
            starts = tuple(re.findall(r"`([^`]+)`", marker["lines"]))
            markers.append(Marker(starts, marker["reason"]))
        elif fence := _FENCE.match(lines[number]):
            end = lines.index(f"{fence[1]}```", number + 1)
            text = textwrap.dedent("\n".join(lines[number + 1 : end]))
            yield Block(page, number + 1, fence[2], text, tuple(markers))
            number, markers = end, []
        else:
            assert not markers, f"{page}:{number}: a marker stands directly before its block"
        number += 1


def unfenced_commands(page: str) -> list[str]:
    """Commands in indented blocks and in fences without a language, which no test would run."""
    text = (ROOT / page).read_text()
    outside = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = [line for line in outside.splitlines() if line.startswith("    ")]
    fenced = [line for block in blocks(page) if block.language == "" for line in block.text.splitlines()]
    return [line for line in (*indented, *fenced) if _COMMAND.match(line)]


def names(folder: Path) -> list[str]:
    """List a folder, for failure messages of commands that miss a file."""
    return sorted(path.name for path in folder.iterdir())
