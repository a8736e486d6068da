"""Random command lines and their judge; tests/engines/bundle/test_mutated_manifests.py draws manifests."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from benchmarks.faults.command_lines import command_line
from benchmarks.faults.fuzz import judge
from benchmarks.faults.mutations import mutated
from sd2rt.runtime.cli.main import main


@pytest.mark.parametrize(
    ("code", "out", "err", "outcome"),
    [
        (0, "5.png\n", "", "held"),
        (0, "5.png\n", "sd2rt: warning: a\nsd2rt: note: b\n", "held"),
        (2, "", "sd2rt: bad\n", "held"),
        (1, "", "sd2rt: a bug, KeyError: 'a'\n", "exit 1"),
        (134, "", "", "exit 1"),
        (3, "", "Traceback (most recent call last):\nsd2rt: b\n", "exit 1"),
        (2, "", "", "wrong"),
        (2, "", "sd2rt: one\nsd2rt: two\n", "wrong"),
        (0, "", "sd2rt: an error\n", "wrong"),
        (2, "", "sd2rt: \x1b[31m\n", "wrong"),
        (0, "\x9b\n", "", "wrong"),
    ],
)
def test_judge(code: int, out: str, err: str, outcome: str) -> None:
    assert judge(code, out, err)[0] == outcome


def test_judge_of_a_path_that_the_caller_chose() -> None:
    assert judge(0, "\x9b.png\n", "", ["run", "-o", "\x9b.png"])[0] == "held"
    assert judge(0, "\x9b.png\n", "", ["run", "-o", "a.png"])[0] == "wrong"
    assert judge(2, "", "sd2rt: \x9b.png\n", ["run", "-o", "\x9b.png"])[0] == "wrong"


def test_cases_are_those_of_their_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    lines = [command_line(Random("0/3"), Path("demo"), tmp_path / name) for name in ("a", "b")]
    assert lines[0] == lines[1]
    content = {"a": [1, 2], "b": {"c": "d"}}
    assert json.dumps(mutated(content, Random(1))) == json.dumps(mutated(content, Random(1)))
    assert content == {"a": [1, 2], "b": {"c": "d"}}


def test_command_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a bundle, commands end before anything is computed."""
    monkeypatch.chdir(tmp_path)
    for seed in range(80):
        folder = tmp_path / str(seed)
        folder.mkdir()
        monkeypatch.chdir(folder)
        words = command_line(Random(seed), tmp_path / "nowhere", folder)
        try:
            code: object = main(words)
        except SystemExit as stop:
            code = stop.code
        streams = capsys.readouterr()
        outcome, detail = judge(code, *streams, words)
        assert outcome == "held", (seed, words, detail)
