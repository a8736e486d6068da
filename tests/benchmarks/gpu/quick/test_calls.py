"""Calls of the quick check: what they carry, what is refused, and the commands of its README."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.gpu.quick.archive import compress
from benchmarks.gpu.quick.calls import (
    LIMIT_BYTES,
    MARGIN_BYTES,
    ROOT,
    OversizedCallError,
    check_calls,
    plan,
    tree_bytes,
    write_calls,
)
from benchmarks.gpu.quick.pack import LEFT_OUT
from benchmarks.gpu.quick.receive import receive
from benchmarks.gpu.quick.wheels import group

README = ROOT / "benchmarks" / "gpu" / "quick" / "README.md"
LONGEST_COMMAND = 2000


def test_archives_fill_one_call_after_another() -> None:
    room = LIMIT_BYTES - (8 << 20) - MARGIN_BYTES
    calls = plan({"base": 1 << 20, "ort": 2 * room}, 8 << 20)
    assert [sum(piece.size for piece in call) for call in calls] == [room, room, 1 << 20]
    assert [(piece.archive, piece.index, piece.start) for call in calls for piece in call] == [
        ("base", 0, 0),
        ("ort", 0, 0),
        ("ort", 1, room - (1 << 20)),
        ("ort", 2, 2 * room - (1 << 20)),
    ]


def test_a_tree_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(OversizedCallError, match="use git sparse-checkout"):
        plan({"ort": 1}, LIMIT_BYTES - MARGIN_BYTES)


def test_an_oversized_call_is_refused(tmp_path: Path) -> None:
    """Also where the tree has grown since the kit was packed."""
    archive = tmp_path / "ort"
    archive.write_bytes(bytes(3 << 20))
    write_calls({"ort": archive}, plan({"ort": 3 << 20}, 1 << 20, 4 << 20), tmp_path / "kit")
    lines = list(check_calls(tmp_path / "kit", 1 << 20, 4 << 20))
    assert len(lines) == 2
    with pytest.raises(OversizedCallError, match=r"call 1 would carry 5,\d{3},\d{3} bytes"):
        list(check_calls(tmp_path / "kit", 3 << 20, 4 << 20))


def test_parts_come_back_as_they_were_and_damage_is_found(tmp_path: Path) -> None:
    source = tmp_path / "packages" / "nested"
    source.mkdir(parents=True)
    (source / "data.bin").write_bytes(bytes(range(256)) * 4096)
    archive = compress(tmp_path / "packages", tmp_path / "archives" / "ort")
    size = archive.stat().st_size
    limit = (8 << 20) + MARGIN_BYTES
    write_calls({"ort": archive}, plan({"ort": size}, 1 << 20, limit), tmp_path / "calls")
    receive(tmp_path / "calls" / "1", tmp_path / "kit")
    assert (tmp_path / "kit/site/nested/data.bin").read_bytes() == (source / "data.bin").read_bytes()
    assert (tmp_path / "kit" / "received.txt").read_text() == "ort\n"
    assert not list((tmp_path / "kit" / "parts").iterdir())
    part = tmp_path / "calls" / "1" / "ort.00"
    part.write_bytes(part.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match="is damaged: send the call again"):
        receive(tmp_path / "calls" / "1", tmp_path / "kit")


def test_wheels_are_grouped_by_the_stages_that_need_them(tmp_path: Path) -> None:
    for name in ("onnxruntime_gpu-1.31.1", "tensorrt_rtx_cu13_libs-1.7", "pydantic-2.14", "cuda_core-1.2"):
        (tmp_path / f"{name}-py3-none-any.whl").touch()
    grouped = {kit: [file.name.split("-")[0] for file in files] for kit, files in group(tmp_path).items()}
    assert grouped == {
        "base": ["pydantic"],
        "ort": ["onnxruntime_gpu"],
        "rtx": ["cuda_core", "tensorrt_rtx_cu13_libs"],
    }
    (tmp_path / "pydantic-2.13-py3-none-any.whl").touch()
    with pytest.raises(ValueError, match="holds pydantic twice"):
        group(tmp_path)


def test_the_tree_counts_what_travels(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", tmp_path, *words], check=True, capture_output=True)

    git("init")
    for name, size in (("kept.txt", 100), ("docs/page.md", 50), ("new.txt", 7), ("skipped.bin", 999)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / ".gitignore").write_text("*.bin\n")
    git("add", "kept.txt", "docs")
    assert tree_bytes(tmp_path) == 100 + 50 + 7 + len("*.bin\n")
    assert tree_bytes(tmp_path, without=["docs"]) == 100 + 7 + len("*.bin\n")
    # As sparse-checkout leaves it: tracked, and not there.
    (tmp_path / "docs/page.md").unlink()
    assert tree_bytes(tmp_path) == 100 + 7 + len("*.bin\n")


def calls_of_the_readme() -> list[dict[str, object]]:
    blocks = re.findall(r"```json\n(.*?)```", README.read_text(), re.DOTALL)
    return [json.loads(block) for block in blocks]


def test_the_readme_has_every_call_and_each_is_short_enough() -> None:
    calls = calls_of_the_readme()
    assert [call["carry"] for call in calls] == [[f".kit/{number}"] for number in range(1, len(calls) + 1)]
    for number, call in enumerate(calls, 1):
        command, timeout = str(call["command"]), call["timeout_s"]
        assert len(command) < LONGEST_COMMAND
        assert isinstance(timeout, int)
        assert timeout <= 600
        assert f".kit/{number} /tmp/kit" in command
        budget = re.search(r"--budget-seconds (\d+)", command)
        assert budget is None or int(budget[1]) < timeout


def test_the_readme_leaves_out_what_the_pack_leaves_out() -> None:
    (command,) = re.findall(r"git sparse-checkout set --no-cone (.*)", README.read_text())
    assert re.findall(r"'!/([^']+)/'", command) == list(LEFT_OUT)
