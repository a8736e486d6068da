"""Log lines of the library, and that it prints nothing."""

from __future__ import annotations

import ast
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .wheels import ROOT, tracked_files

PRINTING = (
    "engines/console.py",
    "src/sd2rt/launch.py",
    "runtime/server/logs.py",
    "runtime/server/worker/__main__.py",
    "runtime/server/worker/worker.py",
)
"""Modules outside of cli folders that write to the standard streams, or say how, for commands."""


def modules() -> list[str]:
    return [
        path
        for path in tracked_files()
        if path.startswith(("engines/", "export/", "runtime/", "src/"))
        and path.endswith(".py")
        and "cli" not in Path(path).parts
        and path not in PRINTING
    ]


def prints(tree: ast.AST) -> list[int]:
    """Lines that write to a standard stream: by print() without a file of its own, sys, traceback or logging."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            if not any(keyword.arg == "file" for keyword in node.keywords):
                lines.append(node.lineno)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if re.fullmatch(r"sys\.(__)?std(out|err)(__)?|traceback\.print_\w+|logging\.basicConfig", name):
                lines.append(node.lineno)
        elif isinstance(node, ast.ImportFrom) and node.module == "sys":
            lines += [node.lineno for alias in node.names if alias.name in ("stdout", "stderr")]
    return lines


def test_no_library_module_prints() -> None:
    assert len(modules()) > 150
    found = {path: prints(ast.parse((ROOT / path).read_text())) for path in modules()}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "text",
    [
        "print('a')",
        "print('a', file=sys.stderr)",
        "sys.stdout.write('a')",
        "from sys import stderr",
        "traceback.print_exc()",
        "logging.basicConfig()",
    ],
)
def test_what_prints_is_found(text: str) -> None:
    assert prints(ast.parse(text)) == [1]


def test_loggers_have_their_modules_names() -> None:
    """So that sd2rt.engines, sd2rt.export and sd2rt.runtime are their parents; no module configures any of them."""
    calls = []
    for path in modules():
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            named = node.func.attr != "getLogger" or ast.unparse(node.args[0]) == "__name__"
            if node.func.attr == "addHandler" or not named:
                calls.append(path)
    # The last two quiet other libraries' loggers: PyTorch's during an export, and Ray's.
    assert {*calls} == {"engines/__init__.py", "export/graphs/onnx_part.py", "runtime/ray/session.py"}


SERVICE = """
import sys
from sd2rt import Pipeline

with Pipeline.open(sys.argv[1], threads=1) as pipe:
    pipe("a lighthouse", num_inference_steps=2, seed=1)
    with pipe.stream("a lighthouse", num_inference_steps=3) as run:
        next(iter(run))
"""


def test_nothing_is_printed_without_a_configuration(small_bundle: Path) -> None:
    command = [sys.executable, "-P", "-c", SERVICE, str(small_bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("configured", [False, True])
def test_errors_are_printed_only_if_logging_is_configured(configured: bool) -> None:
    """Python prints warnings and errors of loggers that have no handler at all."""
    code = (
        "import logging, sd2rt.runtime.pipeline.step_loop\n"
        f"if {configured}: logging.basicConfig()\n"
        "for package in ('engines', 'export', 'runtime'):\n"
        "    logging.getLogger(f'sd2rt.{package}').error('failed')\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr.count("failed") == 3 * configured


def test_lines_of_a_service(small_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    from sd2rt.runtime import Pipeline, Request

    caplog.set_level(logging.DEBUG, "sd2rt")
    with Pipeline.open(small_bundle, threads=1) as pipe:
        planned = pipe.plan([Request(prompt="a", num_inference_steps=2, seed=3, sampler="ddim")])
        with pipe.stream_planned(planned, request_id="first") as run:
            run.result()
        with pipe.stream_planned(planned, request_id="second") as run:
            next(iter(run)).previews(decoder=True)
        pipe("a lighthouse", num_inference_steps=1)
    lines = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    engines = [line for line in lines if line[0] == "sd2rt.engines.backends"]
    for part in ("text_encoder", "denoiser", "decoder"):
        pattern = rf"opened {part} with onnxruntime on cpu in \d+\.\d\d s"
        assert sum(bool(re.fullmatch(pattern, text)) for _, _, text in engines) == 1
    assert {level for _, level, _ in engines} == {"INFO"}
    assert {name.split(".")[1] for name, _, _ in lines} == {"engines", "runtime"}

    def of(request: str, level: str) -> list[str]:
        start = f"request {request}: "
        return [
            text.removeprefix(start) for _, name, text in lines if name == level and text.startswith(start)
        ]

    expected = [r"1 images, 2 steps, seeds \[3\]; prepared in \d+\.\d\d s", r"finished after \d+\.\d\d s"]
    for text, pattern in zip(of("first", "INFO"), expected, strict=True):
        assert re.fullmatch(pattern, text), text
    assert [text.rpartition(" in ")[0] for text in of("first", "DEBUG")] == [
        "a step of 1 images",
        "a step of 1 images",
        "decoded an image",
    ]
    assert of("second", "INFO")[1:] == ["ended after 1 steps"]
    assert [text.rpartition(" in ")[0] for text in of("second", "DEBUG")] == [
        "a step of 1 images",
        "decoded a preview",
    ]
    assert lines[-1] == ("sd2rt.runtime.pipeline.loaded_bundle", "INFO", f"closed {small_bundle}")


def test_lines_of_a_build(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The demo's graphs are in the package, so that only weights are written."""
    from sd2rt.engines.bundle.model_kinds import KINDS
    from sd2rt.export.build import build
    from sd2rt.export.checkpoints.checkpoint import open_checkpoint

    caplog.set_level(logging.INFO, "sd2rt.export")
    checkpoint = open_checkpoint("demo")
    for _ in range(2):
        build(checkpoint, tmp_path / "demo")
    texts = [re.sub(r"\d+\.\d+ s", "T", record.getMessage()) for record in caplog.records]
    parts = [text.partition(":")[0] for text in texts[1:-3]]
    assert texts[0].startswith(f"building {tmp_path}/demo from ")
    assert texts[0].endswith(" in fp32")
    assert parts == list(KINDS["base"].parts)
    assert "derived from decoder in T" in " ".join(texts)
    assert texts[-3].startswith("preview: fitted in T, with an error of 0.")
    assert texts[-2:] == [f"built {tmp_path}/demo in T", f"{tmp_path}/demo is intact: kept"]
    assert {record.levelname for record in caplog.records} == {"INFO"}
