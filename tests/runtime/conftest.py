"""The command line in this process, its engines loaded once for all tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.bundle.schema import Part
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeEngine
from sd2rt.runtime.cli.main import main
from sd2rt.runtime.prompts.tokenizer import Tokenizer


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test runs in an empty folder of its own."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


class KeptEngine(OnnxRuntimeEngine):
    """An engine that stays open."""

    def close(self) -> None:
        pass


@pytest.fixture(scope="session")
def kept() -> dict[object, Any]:
    return {}


@pytest.fixture
def quick_opening(kept: dict[object, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part and the tokenizer are loaded once in all tests: that is most of what a command takes."""

    def load(part: Part, path: Path, **options: Any) -> OnnxRuntimeEngine:
        changed = options.get("weights") is not None or options.get("profile") is not None
        if sys.modules.get("onnxruntime", ...) is None or changed:
            return OnnxRuntimeEngine(part, path, **options)
        if part not in kept:
            kept[part] = KeptEngine(part, path, **options)
        engine: KeptEngine = kept[part]
        return engine

    def tokenizer(bundle: Bundle) -> Tokenizer:
        key = bundle.manifest.tokenizer
        if key not in kept:
            kept[key] = Tokenizer(bundle)
        found: Tokenizer = kept[key]
        return found

    monkeypatch.setattr("sd2rt.engines.onnxruntime.backend.OnnxRuntimeEngine", load)
    monkeypatch.setattr("sd2rt.runtime.networks.networks.Tokenizer", tokenizer)


class Said:
    """What a command did, in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], words: tuple[str | Path, ...]) -> None:
        self.code = main([str(word) for word in words])
        self.out, self.err = capsys.readouterr()


Command = Callable[..., Said]


@pytest.fixture
def sd2rt(capsys: pytest.CaptureFixture[str]) -> Command:
    return lambda *words: Said(capsys, words)


Refused = Callable[..., str]


@pytest.fixture
def refused(sd2rt: Command, here: Path) -> Refused:
    """Checks the rule for errors: one line on standard error, nothing on standard output, no file written."""

    def check(code: int, *words: str | Path) -> str:
        said = sd2rt(*words)
        assert said.code == code, said.err
        assert said.out == ""
        assert said.err.startswith("sd2rt: ")
        assert said.err.endswith("\n")
        assert said.err.count("\n") == 1, said.err
        assert [path for path in here.rglob("*") if path.suffix in (".png", ".part")] == []
        return said.err.removeprefix("sd2rt: ").rstrip("\n")

    return check
