"""The arrows of the design, `export -> engines <- runtime`, and the names that are public."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TRAINING = {
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "onnx",
    "onnxscript",
    "onnx_ir",
    "polygraphy",
}
FORBIDDEN = {
    "engines": {"sd2rt.export", "sd2rt.runtime", *TRAINING},
    "runtime": {"sd2rt.export", *TRAINING},
    "export": {"sd2rt.runtime"},
}


def sources(folder: str) -> list[Path]:
    spec = importlib.util.find_spec(f"sd2rt.{folder}")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    [root] = spec.submodule_search_locations
    return sorted(Path(root).rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, wherever in it, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module is not None
            # `from sd2rt import export` names a module too.
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_arrows(folder: str) -> None:
    files = sources(folder)
    assert len(files) > 5
    wrong = [
        f"{path}:{line}: {name}"
        for path in files
        for line, name in imported(path)
        for forbidden in FORBIDDEN[folder]
        if f"{name}.".startswith(f"{forbidden}.")
    ]
    assert wrong == []


@pytest.mark.parametrize("name", ["engines", "export", "runtime"])
def test_no_top_level_module_of_a_common_name(name: str, tmp_path: Path) -> None:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is not None)"
    assert subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=False).returncode == 0


def test_public_names() -> None:
    runtime = importlib.import_module("sd2rt.runtime")
    assert runtime.__all__ == sorted(runtime.__all__)
    assert dir(runtime) == runtime.__all__
    for name in runtime.__all__:
        assert getattr(runtime, name) is not None
    assert {"Pipeline", "Recipe", "Request", "__version__", "read_recipe"} <= set(runtime.__all__)
    with pytest.raises(AttributeError, match="Pipelines"):
        _ = runtime.Pipelines


LEAN = """
import os, sys
before = set(os.environ.items()), set(os.listdir())
{code}
assert (set(os.environ.items()), set(os.listdir())) == before, "importing did something"
loaded = {training!r} & {{name.partition(".")[0] for name in sys.modules}}
assert not loaded, loaded
"""


@pytest.mark.parametrize(
    "code",
    [
        "import sd2rt.engines.bundle.reader, sd2rt.engines.bundle.writer, sd2rt.engines.onnxruntime.engine",
        "import sd2rt.runtime; [getattr(sd2rt.runtime, name) for name in sd2rt.runtime.__all__]",
    ],
    ids=["engines", "runtime"],
)
def test_importing_is_lean(code: str, tmp_path: Path) -> None:
    run(LEAN.format(code=code, training=TRAINING), tmp_path)


def test_opening_and_running_are_lean(small_bundle: Path, tmp_path: Path) -> None:
    code = (
        "from sd2rt.runtime import Pipeline\n"
        f"with Pipeline.open({str(small_bundle)!r}, threads=1) as pipe: pipe('a', num_inference_steps=1)"
    )
    run(LEAN.format(code=code, training=TRAINING), tmp_path)


def test_commands_are_lean(small_bundle: Path, tmp_path: Path) -> None:
    """All that need no PyTorch, in one process: what any of them loads is found at the end."""
    bundle, output = str(small_bundle), str(tmp_path / "images")
    code = f"""
from sd2rt.runtime.cli.main import main
for line in (
    ["inspect", {bundle!r}],
    ["verify", {bundle!r}],
    ["run", {bundle!r}, "a", "--steps", "2", "--threads", "1", "-o", {output!r}],
    ["bench", {bundle!r}, "--steps", "2", "--threads", "1", "--repetitions", "1", "--no-first-image"],
):
    assert main(line) == 0, line
import sys
assert not any(name.startswith("sd2rt.export") for name in sys.modules)
# Help shows export's commands too.
assert main(["--help"]) == main(["build", "--help"]) == 0
"""
    (tmp_path / "images").mkdir()
    run(LEAN.format(code=code, training=TRAINING), tmp_path)
    assert len(list((tmp_path / "images").iterdir())) == 1


def run(code: str, folder: Path) -> None:
    command = [sys.executable, "-I", "-c", code]
    child = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
