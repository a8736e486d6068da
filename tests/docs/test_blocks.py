"""Every command and every block of Python in the README and the docs runs as pasted, or says why it is not run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .blocks import PAGES, Block, blocks, names, unfenced_commands
from .conftest import BUNDLES, Workspace

RUN = ("sh", "python")

NOT_RUN = {
    "README.md": [
        "the environment of the test has sd2rt already",
        "exporting fp16 takes a minute",
        "docs/engines.md's is run",
        "no GPU",
    ],
    "CONTRIBUTING.md": ["the commands run the test suite, which checks this page"],
    "docs/benchmarking.md": ["minutes at these sizes; tests of the command run its options"],
    "docs/building.md": [
        "needs published files of 5 GB; tiny ones have another architecture",
        "a minute of PyTorch; tests of the command compare smaller networks",
    ],
    "docs/cpu.md": ["not every CPU has bfloat16"],
    "docs/engines.md": ["no GPU"],
    "docs/install.md": [
        "the environment of the test has these packages",
        "the environment of the test has PyTorch",
        "makes an environment, and runs the tests that this is one of; .ci/run runs both",
    ],
    "docs/examples/README.md": [
        "the environment of the test has these packages",
        "serves until it is stopped; a test calls the endpoint without a port",
    ],
}
"""The reasons of all markers, by page."""


def of(page: str) -> list[Block]:
    return [block for block in blocks(page) if block.language in RUN]


READ = [page for page in PAGES if any(block.runnable().strip() for block in of(page))]


def test_blocks_that_are_not_run_say_why() -> None:
    told = {page: [marker.reason for block in blocks(page) for marker in block.markers] for page in PAGES}
    assert {page: reasons for page, reasons in told.items() if reasons} == NOT_RUN


def test_markers_stand_before_blocks_that_would_run() -> None:
    assert [b.place for page in PAGES for b in blocks(page) if b.markers and b.language not in RUN] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_in_blocks_that_are_run(page: str) -> None:
    assert unfenced_commands(page) == []
    assert {block.language for block in blocks(page)} <= {*RUN, "text"}


def test_pages_use_the_bundles_that_building_makes() -> None:
    text = "\n".join(block.runnable() for block in of("docs/building.md"))
    assert [name for name in BUNDLES if f" -o {name} " not in f"{text} ".replace("\n", " \n")] == []


@pytest.mark.parametrize("page", READ)
def test_blocks_run_as_pasted(page: str, workspace: Workspace) -> None:
    here = workspace(page)
    namespace: dict[str, object] = {"__name__": "pasted"}
    for block in of(page):
        text = block.runnable()
        if block.language == "sh":
            paste(block, text, here)
        else:
            exec(compile("\n" * block.line + text, block.page, "exec"), namespace)


def paste(block: Block, text: str, here: Path) -> None:
    """Run commands as a shell does that stops at the first that fails."""
    # -v, with the commands as input: each is printed before it runs, the last one is what failed.
    done = subprocess.run(
        ["bash", "-v", "-e", "-u", "-o", "pipefail", "-c", text],
        cwd=here,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, f"{block.place}\n{done.stderr[-2000:]}\n{names(here)}"
