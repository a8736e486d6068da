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
        "the test environment already has sd2rt",
        "serves until stopped; docs/serving.md has lines that a test runs against a server",
        "exporting fp16 takes a minute",
        "the same command in docs/engines.md is run",
        "no GPU",
    ],
    "CONTRIBUTING.md": ["the commands run the test suite, which checks this page"],
    "docs/benchmarking.md": [
        "takes minutes at these sizes; the command's own tests cover the options",
        "needs a running server; the command's own tests start one",
    ],
    "docs/building.md": [
        "needs published files of 5 GB; tiny ones have a different architecture",
        "takes a minute of PyTorch; the command's own tests compare smaller networks",
    ],
    "docs/cpu.md": ["not every CPU has bfloat16"],
    "docs/deploying.md": [
        "starts Ray; tests/runtime/ray/ runs these commands",
        "starts Ray; tests/runtime/ray/test_data.py draws such rows",
    ],
    "docs/engines.md": ["no GPU"],
    "docs/hub.md": [
        "needs a repository on the Hub; tests/engines/hub/ runs these commands against a local Hub"
    ],
    "docs/safety.md": [
        "needs the extra safety; tests/runtime/provenance/test_safety.py runs these checks",
        "installs packages",
    ],
    "docs/install.md": [
        "the test environment already has these packages",
        "the test environment already has PyTorch",
        "creates an environment and runs the test suite, which includes this test; .ci/run runs both",
    ],
    "docs/ray.md": ["serves until stopped; tests/runtime/ray/test_serve.py deploys this application"] * 2,
    "docs/operating.md": [
        "needs Docker; python -m benchmarks.deploy.image runs the image that is built here",
        "needs a running server; tests/runtime/server/http/test_reload.py does this",
        "needs a running server and a bundle on the Hub; tests/runtime/server/http/test_reload.py does this",
    ],
    "docs/triton.md": [
        "needs a Triton Inference Server; tests/runtime/triton/test_server.py runs these steps with one",
        "installs 400 MB",
    ],
    "docs/serving.md": [
        "serves until stopped; tests/runtime/server/http/test_page.py runs these lines against a server",
    ]
    * 4,
    "docs/examples/README.md": [
        "the test environment already has these packages",
        "serves until stopped; a test calls the endpoint without a port",
    ],
}
"""Reasons of all markers, by page."""


def runnable_blocks(page: str) -> list[Block]:
    return [block for block in blocks(page) if block.language in RUN]


READ = [page for page in PAGES if any(block.runnable().strip() for block in runnable_blocks(page))]


def test_blocks_that_are_not_run_say_why() -> None:
    markers = {page: [marker.reason for block in blocks(page) for marker in block.markers] for page in PAGES}
    assert {page: reasons for page, reasons in markers.items() if reasons} == NOT_RUN


def test_markers_stand_before_blocks_that_would_run() -> None:
    assert [b.place for page in PAGES for b in blocks(page) if b.markers and b.language not in RUN] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_in_blocks_that_are_run(page: str) -> None:
    assert unfenced_commands(page) == []
    assert {block.language for block in blocks(page)} <= {*RUN, "text"}


def test_pages_use_the_bundles_that_building_makes() -> None:
    text = "\n".join(block.runnable() for block in runnable_blocks("docs/building.md"))
    assert [name for name in BUNDLES if f" -o {name} " not in f"{text} ".replace("\n", " \n")] == []


@pytest.mark.parametrize("page", READ)
def test_blocks_run_as_pasted(page: str, workspace: Workspace) -> None:
    here = workspace(page)
    namespace: dict[str, object] = {"__name__": "pasted"}
    for block in runnable_blocks(page):
        text = block.runnable()
        if block.language == "sh":
            paste(block, text, here)
        else:
            exec(compile("\n" * block.line + text, block.page, "exec"), namespace)


def paste(block: Block, text: str, here: Path) -> None:
    """Run commands in a shell that stops at the first failure."""
    # -v prints each command before it runs, so the last one printed is the one that failed.
    completed = subprocess.run(
        ["bash", "-v", "-e", "-u", "-o", "pipefail", "-c", text],
        cwd=here,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=300,
    )
    assert completed.returncode == 0, f"{block.place}\n{completed.stderr[-2000:]}\n{names(here)}"
