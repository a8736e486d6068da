"""docs/architecture.md: its tree names every module, its paths exist, its layers are import-linter's."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from .wheels import ROOT, tracked_files

PAGE = (ROOT / "docs" / "architecture.md").read_text()
PACKAGES = ("engines", "export", "runtime")


def tree(package: str) -> list[str]:
    """The paths in the page's tree of a package; folders end with a slash."""
    [block] = re.findall(rf"```text\n({package}/ .*?)```", PAGE, re.DOTALL)
    paths, parents = [], list[str]()
    for line in block.splitlines():
        name, description = line.split(maxsplit=1)
        depth = (len(line) - len(line.lstrip())) // 2
        assert description.strip(), line
        path = "".join([*parents[:depth], name])
        if name.endswith("/"):
            parents[depth:] = [name]
        paths.append(path)
    return paths


@pytest.mark.parametrize("package", PACKAGES)
def test_the_tree_is_the_package(package: str) -> None:
    named = tree(package)
    assert len(named) == len(set(named))
    modules = {
        path
        for path in tracked_files()
        if path.startswith(f"{package}/") and path.endswith(".py") and Path(path).name != "__init__.py"
    }
    folders = {f"{folder.as_posix()}/" for path in modules for folder in Path(path).parents if folder.name}
    assert set(named) == modules | folders


def test_every_path_in_the_text_exists() -> None:
    text = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    paths = [name for name in re.findall(r"`([\w.\-]+(?:/[\w.\-]+)*/?)`", text) if "/" in name]
    assert len(paths) > 50
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_layers_are_those_that_are_enforced() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    for contract in contracts:
        if contract["type"] != "layers":
            continue
        [container] = contract["containers"]
        layers = [", ".join(f"`{name}`" for name in layer.split(" | ")) for layer in contract["layers"]]
        assert f"| `{container.removeprefix('sd2rt.')}` | {' > '.join(layers)} |" in PAGE


def test_every_public_name_is_in_the_reference_with_an_example() -> None:
    import sd2rt

    page = (ROOT / "docs" / "reference.md").read_text().replace("\\_", "_")
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert set(sections) == set(sd2rt.__all__)
    for name, text in sections.items():
        assert "```python" in text, name
        assert name == "__version__" or f"::: sd2rt.{name}\n" in text, name


def pages() -> list[str]:
    return [name for name in tracked_files() if name.endswith(".md")]


@pytest.mark.parametrize("page", pages())
def test_links_lead_to_files_and_headings(page: str) -> None:
    text = (ROOT / page).read_text()
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, heading = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or (heading and heading not in headings(target)):
            wrong.append(link)
    assert wrong == []


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub derives them from its headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
