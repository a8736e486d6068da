"""The real driver on the small network: images first, ratios by round, and peers that are missing or crash."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.peers import groups
from benchmarks.peers.catalogue import COMMON, Peer, variant
from benchmarks.peers.images import difference
from benchmarks.peers.peer_results import remarks
from benchmarks.peers.step_clock import StepClock

pytestmark = pytest.mark.usefixtures("compiled_once")
ROOT = Path(__file__).resolve().parents[2]
PATCHED = """#!{python}
import os, sys
sys.path.insert(0, os.getcwd())
from benchmarks.peers import worker
make = worker._Worker._image
calls = []
def image(self, *arguments):
    calls.append(arguments)
    if len(calls) == 3:
        print("the power went", file=sys.stderr, flush=True)
        os._exit(9)
    return make(self, *arguments)
worker._Worker._image = image
worker.main()
"""
"""An interpreter whose worker crashes in its second round; it is run with ``-m benchmarks.peers.worker``."""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.peers", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)


def result_of(ran: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert ran.returncode == 0, ran.stderr
    result: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return result


@pytest.fixture
def dying_python(tmp_path: Path) -> Path:
    path = tmp_path / "dying-python"
    path.write_text(PATCHED.format(python=sys.executable))
    path.chmod(0o755)
    return path


def test_peers_agree_and_are_compared_by_round_whoever_is_missing_or_dies(
    tmp_path: Path, small_checkpoint: Path, small_bundle: Path, dying_python: Path
) -> None:
    """One run, since opening PyTorch's peers is what takes the time."""
    names = ["sd2rt", "diffusers", "onnxruntime-loop", "dies", "dead", "no-gpu", "no-python"]
    added = {"dies": {}, "dead": {}, "no-gpu": {"device": "cuda:99"}, "no-python": {}}
    ran = run(
        "--checkpoint", small_checkpoint, "--bundle", small_bundle, "--workdir", tmp_path / "work",
        "--peers", *names[:3], "--images", tmp_path / "images", "--threads", 1, "--steps", 3, "--pairs", 2,
        "--output", tmp_path / "result.json", "--together", 4,
        *(word for name, options in added.items() for word in ("--with", f"{name}={json.dumps(options)}")),
        "--python", f"dies={dying_python}", "--python", "dead=/usr/bin/false",
        "--python", "no-python=/no/such/python",
    )  # fmt: skip
    result = result_of(ran)
    assert result == json.loads((tmp_path / "result.json").read_text())
    peers = result["peers"]
    assert (result["steps"], result["pairs"], result["threads"]) == (3, 2, 1)
    assert (list(peers), result["reference"]) == (names, "diffusers")
    for name in names[:3]:
        peer = peers[name]
        assert peer["available"]
        assert peer["image"]["max_pixel"] <= 2
        assert peer["image"]["comparable"]
        assert peer["peak_rss_bytes"] > 50e6
        for time in ("seconds_per_step", "seconds_per_image"):
            assert peer[time]["min"] > 0
            for other in COMMON:
                # Both common peers have a turn in every round of every group.
                rounds = 2 if name not in COMMON else peers["sd2rt"][time]["n"]
                assert peer["ratio"][other][time]["n"] == rounds
        assert (tmp_path / "images" / f"{name}.npy").exists()
    assert peers["diffusers"]["image"]["psnr_db"] is None
    assert peers["sd2rt"]["ratio"]["sd2rt"]["seconds_per_step"]["median"] == 1
    assert peers["sd2rt"]["version"]["onnxruntime"]
    assert peers["onnxruntime-loop"]["version"]["torch"]
    # PyTorch in sd2rt's process would show in its memory.
    assert peers["sd2rt"]["peak_rss_bytes"] < 0.7 * peers["diffusers"]["peak_rss_bytes"]

    for name, reason in (
        ("dead", "exited with 1: it printed nothing"),
        ("no-python", "/no/such/python cannot be run: No such file or directory"),
    ):
        assert peers[name] == {
            "label": peers[name]["label"],
            "precision": "fp32",
            "available": False,
            "reason": reason,
        }
    assert "cuda" in peers["no-gpu"]["reason"].lower()
    assert "\n" not in peers["no-gpu"]["reason"]
    assert peers["dies"]["failed"] == "exited with 9: the power went"
    # Its finished round counts, and the other peers continued.
    assert peers["dies"]["seconds_per_image"]["n"] == 1
    assert "dead is not measured: exited with 1" in ran.stdout
    assert "dies did not finish: exited with 9: the power went" in ran.stdout


def test_images_are_compared_without_diffusers_too(
    tmp_path: Path, small_checkpoint: Path, small_bundle: Path
) -> None:
    ran = run(
        "--checkpoint", small_checkpoint, "--bundle", small_bundle, "--workdir", tmp_path / "work",
        "--peers", "sd2rt", "--with", "dead={}", "--with", 'tiles={"tile": 64}', "--python", "dead=/usr/bin/false",
        "--threads", 1, "--steps", 3, "--pairs", 1, "--images", tmp_path / "images",
    )  # fmt: skip
    result = result_of(ran)
    assert result["reference"] == "sd2rt"
    assert result["peers"]["sd2rt"]["image"]["psnr_db"] is None
    ours, other = (np.load(tmp_path / "images" / f"{name}.npy") for name in ("sd2rt", "tiles"))
    image = result["peers"]["tiles"]["image"]
    expected = difference(other, ours) | {"bound_db": 40.0, "comparable": True}
    assert image == json.loads(json.dumps(expected))
    assert set(result["peers"]["tiles"]["ratio"]) == {"sd2rt"}

    nobody = run(
        "--checkpoint", small_checkpoint, "--bundle", small_bundle, "--workdir", tmp_path / "work",
        "--peers", "sd2rt", "--python", "sd2rt=/usr/bin/false",
    )  # fmt: skip
    assert result_of(nobody)["reference"] is None


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--peers", "sd2tr"], "unknown peer sd2tr: choose from sd2rt,"),
        (["--python", "nobody=python3"], "--python nobody=python3: expected NAME=PATH"),
        (["--peers", "sd2rt", "openvino", "--groups", "openvino", "openvino"], "--groups must name each"),
        (["--bundle", "b"], "--bundle requires --checkpoint"),
        (["--steps", "1"], "--steps must be at least 2"),
        (["--with", "fast"], "--with fast: expected NAME="),
    ],
)
def test_bad_options_are_one_line(arguments: list[str], line: str) -> None:
    ran = run(*arguments)
    assert ran.returncode == 1
    assert ran.stderr.startswith(line)
    assert ran.stderr.count("\n") == 1


def test_groups_fit_into_memory_beside_the_common_peers() -> None:
    peers = [Peer(name, "", "", memory=1.0) for name in (*COMMON, "a", "b", "c")]
    gigabyte = 10**9
    # A peer takes 1.5 GB, and 85 % of the free memory may be used: the common peers take 3 GB of it.
    assert groups.form(peers, gigabyte, 20 * gigabyte, None) == [[*COMMON, "a", "b", "c"]]
    assert groups.form(peers, gigabyte, 8 * gigabyte, None) == [[*COMMON, "a", "b"], [*COMMON, "c"]]
    assert groups.form(peers, gigabyte, 1 * gigabyte, None) == [[*COMMON, name] for name in "abc"]
    assert groups.form(peers, gigabyte, 20 * gigabyte, 4) == [[*COMMON, "a", "b"], [*COMMON, "c"]]
    assert groups.form(peers[:2], gigabyte, 20 * gigabyte, None) == [[*COMMON]]
    assert groups.parse(["sd2rt,a", "c,b"], peers) == [["sd2rt", "a"], [*COMMON, "c", "b"]]


def test_an_image_that_is_off_is_flagged() -> None:
    reference = np.zeros((8, 8, 3), np.float32)
    assert difference(reference, reference)["psnr_db"] is None
    # One step of 255 everywhere: 20 log10(255) dB.
    error = difference(reference + np.float32(1 / 255), reference)
    assert error["max_pixel"] == 1
    assert error["psnr_db"] == pytest.approx(48.13, abs=0.01)
    image = error | {"psnr_db": 12.0, "bound_db": 40.0, "comparable": False}
    idle = {"seconds": 10.0, "cpu_seconds": 3.0}
    (off, spins) = remarks({"other": {"available": True, "image": image, "idle": idle}}, "diffusers")
    assert off.startswith("other is not comparable: its image has 12.0 dB")
    assert spins.startswith("other was not idle")
    with pytest.raises(ValueError, match="non-finite"):
        difference(reference * np.nan, reference)


def test_a_device_is_waited_for_after_the_first_and_the_last_call_alone() -> None:
    waits: list[int] = []
    clock = StepClock(lambda: waits.append(1))
    for call in range(1, 6):
        clock.stamp(call, 5)
    assert len(waits) == 2
    assert len(clock.seconds) == 1
    every = StepClock()
    for call in range(1, 6):
        every.stamp(call, 5)
    assert len(every.seconds) == 4


def test_a_variant_is_sd2rt_with_further_arguments() -> None:
    peer = variant("sd2rt-ov", {"backend": "openvino", "precision": "bf16"})
    assert (peer.adapter, peer.precision) == ("sd2rt_pipeline", "bf16")
    assert peer.options == {"backend": "openvino", "precision": "bf16"}
    assert variant("half", {"bundle": "b", "precision": "fp16"}).options == {"bundle": "b"}
    with pytest.raises(ValueError, match="unknown precision int3"):
        variant("x", {"precision": "int3"})
