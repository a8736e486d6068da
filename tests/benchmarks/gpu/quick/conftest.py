"""A kit of tiny networks, unpacked as on the machine that the check runs on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu.quick.archive import compress
from benchmarks.gpu.quick.calls import plan, write_calls
from benchmarks.gpu.quick.content import make_content
from benchmarks.gpu.quick.receive import CONTENT, receive


@pytest.fixture(scope="session")
def kit(
    small_checkpoint: Path,
    small_half_bundle: Path,
    small_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("quick")
    unet = small_checkpoint / "unet" / "config.json"
    facts = make_content(small_half_bundle, small_bundle, unet, folder / CONTENT, folder / "drawn")
    assert json.loads((folder / CONTENT / "kit.json").read_text()) == facts
    archives = {CONTENT: compress(folder / CONTENT, folder / "archives" / CONTENT)}
    # In two calls, as a large archive goes.
    size = archives[CONTENT].stat().st_size
    limit = (1 << 20) + (9 << 20) + size // 2 + 1
    calls = plan({CONTENT: size}, 9 << 20, limit)
    assert len(calls) == 2
    write_calls(archives, calls, folder / "calls")
    assert receive(folder / "calls" / "1", folder / "kit") == ["content: 1 of 2 parts"]
    (line,) = receive(folder / "calls" / "2", folder / "kit")
    assert line.startswith("content: unpacked")
    return folder / "kit"
