"""`sd2rt bench --serve` against a real server, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.serving.server_process import Server

from ..conftest import Command, Refused

pytestmark = pytest.mark.usefixtures("here")


def test_a_server_is_measured(sd2rt: Command, small_bundle: Path, tmp_path: Path) -> None:
    with Server(small_bundle, "--max-queue", "2") as server:
        words = ("--rates", "20,60", "--seconds", "1", "--steps-of", "1,2", "--objective", "100")
        said = sd2rt(
            "bench", "--serve", server.url, *words, "--plot", tmp_path / "p.svg", "-o", tmp_path / "r.json"
        )
    assert said.code == 0, said.err
    result = json.loads(said.out.splitlines()[-1])
    assert json.loads((tmp_path / "r.json").read_text()) == result
    assert "requests/s one by one" in said.out
    assert (tmp_path / "p.svg").read_text().lstrip().startswith("<?xml")
    assert [case["rate"] for case in result["cases"]] == [20.0, 60.0]
    for case in result["cases"]:
        assert set(case["statuses"]) <= {"200", "429 queue_full"}
        assert case["statuses"]["200"] > 0
    assert result["settings"]["steps"] == [1, 2]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("--rates", "1"), "--rates is for a server: add --serve URL"),
        (("--serve", "http://127.0.0.1:9", "--batch", "2"), "--batch is not for --serve"),
        (("--serve", "http://127.0.0.1:9", "demo"), "a bundle is not for --serve"),
        (("--serve", "127.0.0.1"), "is not a server's URL"),
        (("--serve", "http://127.0.0.1:9", "--rates", "0"), "--rates 0: use numbers from"),
        (("--serve", "http://127.0.0.1:9", "--rates", "nan"), "--rates nan: use numbers from"),
        (("--serve", "http://127.0.0.1:9", "--steps-of", "2.5"), "steps are whole numbers"),
        (("--serve", "http://127.0.0.1:9", "--plot", "a.jpg"), "neither a .png nor an .svg"),
    ],
)
def test_usage(refused: Refused, words: tuple[str, ...], match: str) -> None:
    assert match in refused(2, "bench", *words)


def test_nobody_listens(refused: Refused) -> None:
    assert "no server answers at http://127.0.0.1:9" in refused(5, "bench", "--serve", "http://127.0.0.1:9")
