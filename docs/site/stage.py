"""Stage the pages of the site: the repository's Markdown in its own folders, so that links between pages hold.

    python docs/site/stage.py FOLDER

Links to sources, which the site does not have, become plain text.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SITE = Path("docs/site")
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "THIRD_PARTY_NOTICES.md",
    "benchmarks/README.md",
)
"""Pages outside of docs/."""
FILES = ("docs/**/*.png", "docs/**/*.webp", "docs/examples/*.*", "benchmarks/results/*.*", "docs/site/*.css")
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def main() -> None:
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # Paths in the settings are relative to them.
    settings = (ROOT / SITE / "mkdocs.yml").read_text()
    (folder / "mkdocs.yml").write_text(settings.replace("ROOT", str(ROOT)))
    pages = folder / "pages"
    copied = [path for pattern in FILES for path in sorted(ROOT.glob(pattern)) if path.is_file()]
    for path in copied:
        target = pages / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    named = [*(ROOT / name for name in PAGES), *sorted((ROOT / "docs").glob("*.md"))]
    known = {*copied, *named}
    for path in named:
        target = pages / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_without_links_to_sources(path, known))


def _without_links_to_sources(page: Path, known: set[Path]) -> str:
    def link(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        if re.match(r"[a-z]+:", target) or (page.parent / target).resolve() in known:
            return match[0]
        return text

    return _LINK.sub(link, page.read_text())


if __name__ == "__main__":
    main()
