from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sd2rt.engines.bundle.file_lock import FileLock

from ...conftest import Command, Refused

FAST = ("--steps", "2", "--threads", "1")


pytestmark = pytest.mark.usefixtures("here", "quick_opening")


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


ROWS = """a fox
{"prompt": "a hen", "seed": 9, "size": "64x128"}
{"prompt": "two", "count": 2, "steps": 1}
"""


def test_a_batch_draws_what_run_draws(sd2rt: Command, small_bundle: Path, here: Path) -> None:
    (here / "rows.jsonl").write_text(ROWS)
    said = sd2rt("batch", small_bundle, "rows.jsonl", "-o", "out", "--seed", "5", *FAST)
    assert (said.code, said.out) == (0, "out/manifest.jsonl\n"), said.err
    assert said.err == "sd2rt: note: 3 rows drawn, 0 kept, 0 failed\n"
    found = {entry["prompt"]: entry for entry in entries(here / "out")}
    assert [found[name]["seeds"] for name in ("a fox", "a hen", "two")] == [[5], [9], [7, 8]]
    assert {entry["status"] for entry in found.values()} == {"done"}
    sd2rt("run", small_bundle, "a hen", *FAST, "--seed", "9", "--size", "64x128", "-o", "hen.png")
    drawn = Image.open(here / "out" / found["a hen"]["files"][0])
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(Image.open("hen.png")))


def test_a_batch_resumes(sd2rt: Command, small_bundle: Path, here: Path) -> None:
    words = ("batch", small_bundle, "rows.jsonl", "-o", "out", "--seed", "5", *FAST)
    (here / "rows.jsonl").write_text(ROWS)
    sd2rt(*words)
    first = {path.name: path.stat().st_mtime_ns for path in (here / "out").glob("*.png")}
    (file, *_) = entries(here / "out")[0]["files"]
    (here / "out" / file).unlink()
    with (here / "out" / "manifest.jsonl").open("a") as record:
        record.write('{"row": "cut sho')
    assert "1 rows drawn, 2 kept, 0 failed" in sd2rt(*words).err
    assert {path.name for path in (here / "out").glob("*.png")} == first.keys()
    kept = {path.name: path.stat().st_mtime_ns for path in (here / "out").glob("*.png")}
    assert sum(first[name] == kept[name] for name in first) == len(first) - 1
    assert "0 rows drawn, 3 kept" in sd2rt(*words).err
    # Another row, and options that change the images, are drawn.
    (here / "rows.jsonl").write_text(ROWS + "another\n")
    assert "1 rows drawn, 3 kept" in sd2rt(*words).err
    assert "4 rows drawn, 0 kept" in sd2rt(*words[:-3], "1", *words[-2:]).err


def test_rows_that_fail(sd2rt: Command, small_bundle: Path, here: Path) -> None:
    (here / "rows.jsonl").write_text(
        'a fox\n{"prompt": "b", "stepz": 1}\n{"prompt": "c", "size": "65x64"}\n{"prompt": "d", "image": "none.png"}\n'
    )
    said = sd2rt("batch", small_bundle, "rows.jsonl", "-o", "out", *FAST)
    assert said.code == 5
    assert said.err.splitlines()[-1].startswith(
        "sd2rt: 3 of 4 rows failed, see out/manifest.jsonl; the first: line "
    )
    failed = sorted(entry["error"][:6] for entry in entries(here / "out") if entry["status"] == "failed")
    assert failed == ["line 2", "line 3", "line 4"]
    assert len(list((here / "out").glob("*.png"))) == 1


def test_equal_rows_are_drawn_each(sd2rt: Command, small_bundle: Path, here: Path) -> None:
    (here / "rows.txt").write_text("a fox\na fox\n")
    sd2rt("batch", small_bundle, "rows.txt", "-o", "out", "--format", "webp", *FAST)
    assert len(list((here / "out").glob("*.webp"))) == 2


def test_standard_input_and_json(
    sd2rt: Command, small_bundle: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a fox\n"))
    said = sd2rt("batch", small_bundle, "-", "-o", "out", "--json", *FAST)
    assert said.code == 0
    assert [json.loads(line)["status"] for line in said.out.splitlines()] == ["done"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("none.jsonl", "-o", "out"), "none.jsonl cannot be read (No such file or directory)"),
        (("empty.jsonl", "-o", "out"), "empty.jsonl holds no row"),
        (("rows.jsonl",), "Missing option '--output'"),
        (("rows.jsonl", "-o", "out.png"), "--output out.png has a suffix, but a batch is a folder"),
        (("rows.jsonl", "-o", "out", "--upscale", "x4"), "--upscale is for 'sd2rt run'"),
        (("rows.jsonl", "-o", "out", "--image", "-"), "not standard input"),
        (("rows.jsonl", "-o", "out", "--quality", "3"), "quality is for jpeg and webp"),
        (("a", "b", "c", "-o", "out"), "3 arguments, expected [BUNDLE] FILE"),
    ],
)
def test_what_is_refused(refused: Refused, here: Path, words: tuple[str, ...], said: str) -> None:
    (here / "rows.jsonl").write_text("a\n")
    (here / "empty.jsonl").write_text("\n\n")
    assert said in refused(2, "batch", *words)


def test_one_batch_at_a_time(sd2rt: Command, small_bundle: Path, here: Path) -> None:
    (here / "out").mkdir()
    (here / "rows.txt").write_text("a\n")
    lock = FileLock(here / "out" / ".batch.lock")
    assert lock.acquire()
    said = sd2rt("batch", small_bundle, "rows.txt", "-o", "out", *FAST)
    assert (said.code, "another batch writes to out" in said.err) == (5, True)
    lock.release()
