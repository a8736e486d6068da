"""`sd2rt batch --ray`: the same files as without it, resumed after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from ..conftest import Command, Refused

FAST = ("--steps", "2", "--threads", "1")
RAY = ("--ray", "--rows-per-part", "2")

pytestmark = pytest.mark.usefixtures("here", "quick_opening")

ROWS = """a fox
{"prompt": "a hen", "seed": 9, "size": "64x128"}
{"prompt": "two", "count": 2, "steps": 1}
{"prompt": "b", "stepz": 1}
{"prompt": "c", "size": "65x64"}
a fox
"""


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob(pattern)}


def entries(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    return sorted(lines, key=lambda entry: (entry.get("line", 0), entry.get("row", ""), entry["status"]))


def test_a_folder_is_that_of_batch(ray_session: Any, sd2rt: Command, small_bundle: Path, here: Path) -> None:
    (here / "rows.jsonl").write_text(ROWS)
    words = ("batch", small_bundle, "rows.jsonl", "--seed", "5", *FAST)
    plain = sd2rt(*words, "-o", "plain")
    said = sd2rt(*words, "-o", "out", *RAY, "--actors", "1")
    assert (said.code, said.out) == (plain.code, "out/manifest.jsonl\n")
    assert said.err.splitlines()[-2] == "sd2rt: note: 4 rows drawn, 0 kept, 2 failed"
    assert contents(here / "out", "*.png") == contents(here / "plain", "*.png")
    assert entries(here / "out") == entries(here / "plain")
    # Either goes on where the other stopped.
    next((here / "out").glob("*.png")).unlink()
    assert "1 rows drawn, 3 kept, 2 failed" in sd2rt(*words, "-o", "out").err
    next((here / "plain").glob("*.png")).unlink()
    assert "1 rows drawn, 3 kept, 2 failed" in sd2rt(*words, "-o", "plain", *RAY).err
    assert contents(here / "out", "*.png") == contents(here / "plain", "*.png")
    assert not (here / "out" / ".batch.run").exists()


def images_of(folder: Path) -> dict[tuple[str, int], bytes | None]:
    rows = [row for path in folder.glob("*.parquet") for row in parquet.read_table(path).to_pylist()]
    found = {(row["row"], row["image_index"]): row["image_bytes"] for row in rows}
    assert len(found) == len(rows), "a row is there twice"
    return found


def test_parquet_is_resumed(ray_session: Any, sd2rt: Command, small_bundle: Path, here: Path) -> None:
    (here / "rows.jsonl").write_text(ROWS + '{"prompt": "d", "image": "d.png"}\n')
    words = ("batch", small_bundle, "rows.jsonl", "-o", "out", *FAST, *RAY, "--to", "parquet")
    assert "4 rows drawn, 0 kept, 3 failed" in sd2rt(*words).err
    first = images_of(here / "out")
    assert len([data for data in first.values() if data is not None]) == 5
    (lost, *_) = sorted((here / "out").glob("part-*"))
    count = len(set(parquet.read_table(lost, columns=["row"])["row"].to_pylist()))
    lost.unlink()
    said = sd2rt(*words)
    assert f"{count} rows drawn, {4 - count} kept, 3 failed" in said.err
    # Without a seed too, the pixels are the same.
    assert images_of(here / "out") == first
    rows = parquet.read_table(here / "out").to_pylist()
    assert sorted(row["error"][:6] for row in rows if row["error"]) == ["line 4", "line 5", "line 7"]


def test_webdataset(ray_session: Any, sd2rt: Command, small_bundle: Path, here: Path) -> None:
    table = pa.table({"prompt": ["a", "b", "c"], "seed": [1, None, 3], "count": [2, 1, None]})
    parquet.write_table(table, here / "rows.parquet")
    words = ("batch", small_bundle, "rows.parquet", "-o", "out", *FAST, *RAY, "--to", "webdataset", "--json")
    said = sd2rt(*words, "--format", "webp")
    assert {json.loads(line)["status"] for line in said.out.splitlines()} == {"done"}
    samples: dict[str, dict[str, bytes]] = {}
    for path in (here / "out").glob("part-*.tar"):
        with tarfile.open(path) as archive:
            for member in archive:
                key, _, suffix = member.name.partition(".")
                file = archive.extractfile(member)
                assert file is not None
                assert samples.setdefault(key, {}).setdefault(suffix, file.read()) is not None
    assert {tuple(sorted(sample)) for sample in samples.values()} == {("json", "webp")}
    facts = [json.loads(sample["json"]) for sample in samples.values()]
    assert sorted((fact["prompt"], fact["image_index"]) for fact in facts) == [
        ("a", 0),
        ("a", 1),
        ("b", 0),
        ("c", 0),
    ]
    assert "0 rows drawn, 3 kept" in sd2rt(*words[:-1], "--format", "webp").err


AGENTS = (b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")
"""Processes of Ray's own that try for a minute to report the end of the others."""


def processes_with(marker: str) -> list[int]:
    """Processes that have a variable's value in their environment, but for Ray's agents."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (path / "environ").read_bytes():
                found += [] if (path / "cmdline").read_bytes().startswith(AGENTS) else [int(path.name)]
        except OSError:
            continue
    return found


def test_a_killed_driver(ray_session: Any, sd2rt: Command, small_bundle: Path, here: Path) -> None:
    """Its actors end with it, and the next command draws what is left."""
    (here / "rows.jsonl").write_text("".join(f'{{"prompt": "a", "seed": {seed}}}\n' for seed in range(12)))
    words = (
        "batch",
        str(small_bundle),
        "rows.jsonl",
        "-o",
        "out",
        "--threads",
        "1",
        "--steps",
        "30",
        *RAY,
        "--to",
        "parquet",
    )
    marker = f"{here}-killed"
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "sd2rt", *words, "--quiet"],
        env=os.environ | {"SD2RT_TEST_MARKER": marker},
    )
    while not list(here.glob("out/part-*.parquet")):
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = len(images_of(here / "out"))
    assert "0 failed" in (said := sd2rt(*words).err), said
    assert len(images_of(here / "out")) == 12
    assert kept < 12
    deadline = time.monotonic() + 60
    while left := processes_with(marker):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert [path.name for path in (here / "out").iterdir() if path.name.startswith(".")] == []


def test_a_terminated_driver(ray_session: Any, small_bundle: Path, here: Path) -> None:
    """It cleans up and has the exit code of any terminated command, though Ray has a handler of its own."""
    (here / "rows.jsonl").write_text("".join(f'{{"prompt": "a", "seed": {seed}}}\n' for seed in range(200)))
    words = ("batch", str(small_bundle), "rows.jsonl", "-o", "out", "--threads", "1", "--steps", "30", *RAY)
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "sd2rt", *words, "--quiet"], stderr=subprocess.PIPE, text=True
    )
    while not list(here.glob("out/*.png")):
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate()
    assert (child.returncode, err.splitlines()[-1]) == (143, "sd2rt: terminated"), err
    assert [path.name for path in (here / "out").iterdir() if path.name.startswith(".")] == []


def test_a_bundle_that_actors_cannot_open(
    ray_session: Any, refused: Refused, small_bundle: Path, here: Path
) -> None:
    (here / "rows.jsonl").write_text("a\n")
    (here / "bundle").mkdir()
    (here / "bundle" / "bundle.json").write_bytes((small_bundle / "bundle.json").read_bytes())
    said = refused(3, "batch", "./bundle", "rows.jsonl", "-o", "out", *RAY)
    assert "is missing" in said


def test_what_is_refused(refused: Refused, here: Path) -> None:
    (here / "rows.jsonl").write_text("a\n")
    words = ("batch", "rows.jsonl", "-o", "out")
    assert refused(2, *words, "--actors", "2") == "--actors is for --ray: add it, or leave --actors out"
    assert refused(2, *words, "--to", "parquet") == "--to is for --ray: add it, or leave --to out"
