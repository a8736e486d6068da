"""sd2rt serve: refusals before anything is served, each in one line with its exit code."""

from __future__ import annotations

import logging
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sd2rt.engines.bundle.manifest import MANIFEST
from sd2rt.runtime.cli.main import main
from sd2rt.runtime.server.logs import LOGGERS


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """Leave the loggers of other tests as they were."""
    loggers = [logging.getLogger(name) for name in (*LOGGERS, "uvicorn.access")]
    before = [(logger.handlers, logger.propagate, logger.level, logger.disabled) for logger in loggers]
    yield
    for logger, (handlers, propagate, level, disabled) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate, logger.disabled = handlers, propagate, disabled
        logger.setLevel(level)


@pytest.fixture
def bundle_folder(tmp_path: Path) -> Path:
    """A folder that passes for a bundle until it is opened, which no test here comes to."""
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / MANIFEST).touch()
    return tmp_path / "some"


class Command:
    """The command in this process; nothing here comes as far as serving."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, *words: object) -> tuple[int, str]:
        """Exit code and standard error."""
        code = main(["serve", *map(str, words)])
        out, error = self._capfd.readouterr()
        assert out == ""
        return code, error


@pytest.fixture
def serve(capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(capfd)


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def one_line(error: str) -> str:
    (line,) = [line for line in error.splitlines() if not line.startswith("{")]
    assert line.startswith("sd2rt: ")
    return line


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--port", "70000"], "port is 70000"),
        (["--port", "x"], "--port"),
        (["--host", "0.0.0.0"], "no key is set"),
        (["--host", "nowhere.invalid", "--no-auth"], "is no address"),
        (["--lora", "a.safetensors"], "NAME=FILE"),
        (["--max-batch", "0"], "max_batch"),
        (["--log-format", "xml"], "log_format"),
        (["--config", "/nothing.toml"], "cannot be read"),
        (["--api-key-file", "/nothing"], "cannot be read"),
        (["--colour"], "--colour"),
    ],
)
def test_usage(serve: Command, bundle_folder: Path, words: list[str], part: str) -> None:
    code, error = serve(bundle_folder, *words)
    assert part in one_line(error)
    assert code == 2


def test_a_port_in_use(serve: Command, bundle_folder: Path, busy_port: int) -> None:
    code, error = serve(bundle_folder, "--port", busy_port)
    assert "is in use" in one_line(error)
    assert code == 2


def test_bundles_of_one_name(serve: Command, bundle_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / bundle_folder.name
    shutil.copytree(bundle_folder, other)
    code, error = serve(bundle_folder, other)
    assert "two bundles are named" in one_line(error)
    assert code == 2


def test_a_missing_bundle(serve: Command, tmp_path: Path) -> None:
    code, error = serve(tmp_path / "nothing")
    assert "no bundle" in one_line(error)
    assert code == 3


@pytest.mark.parametrize("module", ["starlette", "uvicorn", "python_multipart", "prometheus_client"])
def test_a_missing_extra(serve: Command, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    code, error = serve("demo")
    assert one_line(error) == f"sd2rt: {module} is not installed: pip install '.[server]' in sd2rt's checkout"
    assert code == 6


def test_a_key_is_never_printed(serve: Command, monkeypatch: pytest.MonkeyPatch, bundle_folder: Path) -> None:
    monkeypatch.setenv("SD2RT_API_KEY", "s3cret ümlaut")
    code, error = serve(bundle_folder)
    assert code == 2
    assert "s3cret" not in error
