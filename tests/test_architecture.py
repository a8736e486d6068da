"""The arrows of the design, `export -> engines <- runtime`, the shape of its rooms, and the names that are public."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import version
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


ROOT = Path(__file__).parents[1]
QUESTION = re.compile(r"\s*(What|How|Which|Where|Whether|Who|Whose|Whom|Why|When)\b")
MOST_LINES = 400
MOST_MODULES = 20


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


def module_of(path: Path, folder: str) -> str:
    """The name of a package's module, by its file."""
    parts = path.relative_to(ROOT / folder).with_suffix("").parts
    return ".".join(("sd2rt", folder, *(parts[:-1] if parts[-1] == "__init__" else parts)))


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_cycles(folder: str) -> None:
    """Modules import each other in one direction, those in functions and for type checkers counted."""
    files = {module_of(path, folder): path for path in (ROOT / folder).rglob("*.py")}
    graph = {
        module: {
            target
            for _, name in imported(path)
            # `from sd2rt.engines.errors import EngineError` names a module and what is in it.
            for target in (name, name.rpartition(".")[0])
            if target in files and target != module
        }
        for module, path in files.items()
    }
    assert sum(map(len, graph.values())) > len(files)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_rooms_say_what_they_are_for_and_are_small(folder: str) -> None:
    rooms = {path.parent for path in (ROOT / folder).rglob("*.py")}
    assert len(rooms) > 3
    for room in rooms:
        door = room / "__init__.py"
        assert door.is_file(), room
        assert ast.get_docstring(ast.parse(door.read_text(encoding="utf-8"))), door
        assert len([*room.glob("*.py")]) - 1 <= MOST_MODULES, room


def test_files_are_short() -> None:
    lengths = {
        path: len(path.read_text(encoding="utf-8").splitlines())
        for folder in ("benchmarks", *FORBIDDEN)
        for path in (ROOT / folder).rglob("*.py")
    }
    assert len(lengths) > 200
    assert {path: lines for path, lines in lengths.items() if lines > MOST_LINES} == {}


def documented(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and text of every docstring in a file, of attributes too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for statement in node.body:
                match statement:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        yield statement.lineno, text


def test_docstrings_of_attributes_are_seen(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('"""M."""\nx = 1\n"""X."""\nclass A:\n    y: int\n    """Y."""\n')
    assert sorted(documented(tmp_path / "a.py")) == [(1, "M."), (3, "X."), (6, "Y.")]


@pytest.mark.parametrize("folder", ["benchmarks", *FORBIDDEN])
def test_docstrings_are_statements(folder: str) -> None:
    """A docstring names what it describes; a clause that begins with a question word does not."""
    texts = [(path, line, text) for path in (ROOT / folder).rglob("*.py") for line, text in documented(path)]
    assert len(texts) > 100
    asking = [f"{path}:{line}: {text[:60]}" for path, line, text in texts if QUESTION.match(text)]
    assert asking == []


@pytest.mark.parametrize("folder", ["benchmarks", *FORBIDDEN])
def test_tests_mirror_sources(folder: str) -> None:
    tests = ROOT / "tests" / folder
    rooms = {path for path in tests.iterdir() if path.is_dir() and path.name != "__pycache__"}
    rooms |= {path.parent for path in tests.rglob("test_*.py")}
    assert len(rooms) > 3
    assert [room for room in rooms if not (ROOT / folder / room.relative_to(tests)).is_dir()] == []


def test_public_names() -> None:
    """The runtime's, and every error; each is what its home has."""
    sd2rt = importlib.import_module("sd2rt")
    runtime = importlib.import_module("sd2rt.runtime")
    errors = importlib.import_module("sd2rt.engines.errors")
    tree = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.Sd2rtError)
    }
    assert sd2rt.__all__ == sorted({*runtime.__all__, *tree})
    assert dir(sd2rt) == sd2rt.__all__
    for name in sd2rt.__all__:
        public = getattr(sd2rt, name)
        if name == "__version__":
            assert public == version("sd2rt")
        else:
            assert public is getattr(importlib.import_module(public.__module__), name)
    with pytest.raises(AttributeError, match="Pipelines"):
        _ = sd2rt.Pipelines


def test_public_names_of_the_runtime() -> None:
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


def test_importing_loads_little(tmp_path: Path) -> None:
    code = (
        "import sd2rt, sys\n"
        "assert sd2rt.__version__ and 'Pipeline' in dir(sd2rt)\n"
        "assert not {'numpy', 'pydantic'} & set(sys.modules)"
    )
    run(code, tmp_path)


def test_help_loads_little(tmp_path: Path) -> None:
    """All commands are asked for their options; none draws a bar or computes."""
    code = (
        "from sd2rt.runtime.cli.main import main\n"
        "assert main(['--help']) == 0\n"
        "import sys\n"
        "assert 'sd2rt.export.cli.build' in sys.modules\n"
        "assert not {'numpy', 'rich.progress'} & set(sys.modules)"
    )
    run(code, tmp_path)


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
