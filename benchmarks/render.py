"""Render the README's goals and pages in docs from results: all that have a template here.

python -m benchmarks.render              write all
python -m benchmarks.render --check      exit with 1 if they differ from the results
python -m benchmarks.render --results FOLDER --output FOLDER      render performance.md from other results
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from string import Template

from benchmarks.page import compatibility, provenance, reliability, roof, scaling, scheduling, serving
from benchmarks.page.goals import goals
from benchmarks.page.latest import NotMeasuredError, Results
from benchmarks.page.tables import SECTIONS, Section
from benchmarks.recording import report

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
README, PAGE = ROOT / "README.md", ROOT / "docs" / "performance.md"
RELIABILITY, SCHEDULING = ROOT / "docs" / "reliability.md", ROOT / "docs" / "scheduling.md"
ROOF = ROOT / "docs" / "roof.md"
SCALING = ROOT / "docs" / "scaling.md"
SERVING = ROOT / "docs" / "serving.md"
PROVENANCE = ROOT / "docs" / "provenance.md"
COMPATIBILITY = ROOT / "docs" / "compatibility.md"
BEGIN = "<!-- performance: rendered by python -m benchmarks.render -->"
END = "<!-- end of performance -->"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.render", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="the folder of results")
    parser.add_argument("--output", type=Path, help="write only performance.md, into this folder")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is stale")
    options = parser.parse_args()
    try:
        results = Results(options.results)
        if options.output is not None:
            files = {options.output / PAGE.name: page(results, options.output)}
        else:
            files = {
                README: with_table(README.read_text(), results),
                PAGE: page(results, PAGE.parent),
                ROOF: roof.page(results, ROOF.parent),
                COMPATIBILITY: compatibility.page(results, COMPATIBILITY.parent),
                RELIABILITY: reliability.page(results, RELIABILITY.parent),
                SCHEDULING: scheduling.page(results, SCHEDULING.parent),
                SCALING: scaling.page(results, SCALING.parent),
                SERVING: serving.page(results, SERVING.parent),
                PROVENANCE: provenance.page(results, PROVENANCE.parent),
            }
    except (NotMeasuredError, ValueError) as error:
        sys.exit(f"benchmarks.render: {error}")
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text() != text]
    if options.check:
        if stale:
            names = ", ".join(path.name for path in stale)
            sys.exit(f"{names}: out of date with benchmarks/results: run 'python -m benchmarks.render'")
        return
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path])
        print(f"wrote {path}", file=sys.stderr)


def page(results: Results, folder: Path) -> str:
    """Render the performance page; its links are relative to ``folder``."""
    texts = {name: _section(section, results, folder) for name, section in SECTIONS.items()}
    texts["goals"] = goals(results, folder)
    return Template((HERE / "performance.md.in").read_text()).substitute(texts)


def _section(section: Section, results: Results, folder: Path) -> str:
    try:
        return section(results, folder)
    except NotMeasuredError as missing:
        return f"Not measured yet: {missing}."
    except KeyError as missing:
        return f"Not measured yet: the result has no {missing}."


def with_table(readme: str, results: Results) -> str:
    """Return the README with the table of goals between its two markers.

    Raises:
        ValueError: a marker is missing or repeated.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"README.md: expected exactly one line {BEGIN!r} and one {END!r}")
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{goals(results, ROOT)}\n{END}{after}"


if __name__ == "__main__":
    main()
