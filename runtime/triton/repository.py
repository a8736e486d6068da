"""Write a bundle into a Triton model repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp

from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.engines.printable import printable
from sd2rt.runtime.server.worker_settings import WorkerSettings
from sd2rt.runtime.triton.model_config import model_config

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_ROOTS = ("sd2rt.runtime.server.logs", "sd2rt.runtime.triton.tensors", "sd2rt.runtime.triton.worker_thread")
_MODEL = '''"""Start of the model: the modules beside this file come before any other sd2rt."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from sd2rt.runtime.triton.model import TritonPythonModel  # noqa: E402, F401
'''


def write_model(
    settings: WorkerSettings,
    repository: Path,
    *,
    python: str = sys.executable,
    streams: bool,
    copy: bool = False,
) -> Path:
    """Write the next version of a model, and return its folder.

    Triton that watches the repository loads it beside the previous version, which then ends.

    Args:
        settings: of the worker, with one bundle; its name is the model's.
        repository: folder of models; is made.
        python: runs the worker, unless ``SD2RT_PYTHON`` names another one.
        streams: several responses a request, one a step.
        copy: copy the bundle too; otherwise the repository names its folder.

    Raises:
        RequestError: the bundle's name cannot be a model's.
        OSError: a file cannot be written.
    """
    ((name, bundle),) = settings.bundles.items()
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"{printable(name)} cannot be a Triton model's name: rename the bundle to letters, digits, '.', '-', '_'"
        )
    model = repository / name
    model.mkdir(parents=True, exist_ok=True)
    part = Path(mkdtemp(prefix=".sd2rt-", dir=model))
    try:
        if copy:
            shutil.copytree(bundle, part / "bundle")
        worker = replace(settings, bundles={name: "bundle" if copy else os.path.abspath(bundle)})
        found = {"sd2rt": version("sd2rt"), "python": python, "worker": worker.to_json()}
        (part / "settings.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        (part / "model.py").write_text(_MODEL, encoding="utf-8")
        copy_modules(part)
        # For the server's user, who may be another one than the writer.
        part.chmod(0o755)
        config = model / ".config.pbtxt"
        config.write_text(model_config(name, streams=streams), encoding="utf-8")
        config.replace(model / "config.pbtxt")
        folder = model / str(_last_version(model) + 1)
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return folder


def copy_modules(folder: Path) -> None:
    """Copy the modules that the model imports, and nothing else of sd2rt, as a package in ``folder``.

    Raises:
        EngineError: they cannot be imported.
    """
    for name, source in module_files().items():
        parts = name.split(".")
        target = (
            folder.joinpath(*parts, "__init__.py")
            if source.name == "__init__.py"
            else (folder.joinpath(*parts[:-1], parts[-1] + ".py"))
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def module_files() -> dict[str, Path]:
    """Return the files of the model's modules of sd2rt, by module."""
    code = (
        f"import importlib, json, sys; [importlib.import_module(name) for name in {_ROOTS!r}]; "
        "print(json.dumps({n: m.__file__ for n, m in sys.modules.items() if n.partition('.')[0] == 'sd2rt'}))"
    )
    # In a process of its own: this one has imported more than the model needs.
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(f"the model's modules cannot be imported: {printable(done.stderr.strip()[-300:])}")
    files: dict[str, Path] = {name: Path(file) for name, file in json.loads(done.stdout).items()}
    # It needs a module that only Triton has, so it is not imported here.
    spec = find_spec("sd2rt.runtime.triton.model")
    assert spec is not None
    assert spec.origin is not None
    return {**files, "sd2rt.runtime.triton.model": Path(spec.origin)}


def _last_version(model: Path) -> int:
    return max((int(each.name) for each in model.iterdir() if each.name.isdecimal()), default=0)
