"""Write the recorded help of every command into docs/cli.md, at 80 and 120 columns.

python -m tests.runtime.cli.page
"""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout
from importlib.metadata import entry_points
from pathlib import Path
from unittest.mock import patch

PAGE = Path(__file__).parents[3] / "docs" / "cli.md"
BEGIN = "<!-- generated: python -m tests.runtime.cli.page -->\n"
WIDTHS = (80, 120)
_VARIABLES = ("SD2RT_DEVICE", "SD2RT_BACKEND", "SD2RT_PRECISION", "SD2RT_THREADS")


def session(words: list[str], width: int) -> str:
    """The command's line and what it prints on a terminal of this width."""
    from sd2rt.runtime.cli.main import main

    environment = {name: value for name, value in os.environ.items() if name not in _VARIABLES}
    printed = io.StringIO()
    with (
        patch.dict(os.environ, {**environment, "COLUMNS": str(width), "NO_COLOR": "1"}, clear=True),
        redirect_stdout(printed),
    ):
        assert main(words) == 0
    lines = (line.rstrip() for line in printed.getvalue().rstrip().splitlines())
    return "\n".join([f"$ sd2rt {' '.join(words)}", *lines])


def commands() -> list[str]:
    return sorted(point.name for point in entry_points(group="sd2rt.commands"))


def recorded() -> str:
    """The generated part of the page."""
    parts = [BEGIN]
    for width in WIDTHS:
        parts.append(f"## Help at {width} columns\n")
        for words in (["--help"], *([name, "--help"] for name in commands())):
            title = "sd2rt" if len(words) == 1 else f"sd2rt {words[0]}"
            parts.append(f"### {title}, {width} columns\n\n```text\n{session(words, width)}\n```\n")
    return "\n".join(parts)


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(text.partition(BEGIN)[0] + recorded(), encoding="utf-8")


if __name__ == "__main__":
    main()
