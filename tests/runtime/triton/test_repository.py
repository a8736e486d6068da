"""The model repository that `sd2rt triton` writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.cli.main import main
from sd2rt.runtime.server.worker_settings import WorkerSettings
from sd2rt.runtime.triton.repository import module_files, write_model


def test_versions_follow_each_other(small_bundle: Path, tmp_path: Path) -> None:
    settings = WorkerSettings(bundles={"small": str(small_bundle)}, threads=1)
    first = write_model(settings, tmp_path, streams=True)
    second = write_model(settings, tmp_path, streams=False, copy=True)
    assert [first.name, second.name] == ["1", "2"]
    assert sorted(each.name for each in (tmp_path / "small").iterdir()) == ["1", "2", "config.pbtxt"]
    found = json.loads((first / "settings.json").read_text())
    assert WorkerSettings.from_json(found["worker"]) == settings
    assert found["python"] == sys.executable
    assert json.loads((second / "settings.json").read_text())["worker"]["bundles"] == {"small": "bundle"}
    assert (second / "bundle" / "bundle.json").read_bytes() == (small_bundle / "bundle.json").read_bytes()
    assert "decoupled: false" in (tmp_path / "small" / "config.pbtxt").read_text()


def test_the_copied_modules_need_numpy_alone(small_bundle: Path, tmp_path: Path) -> None:
    """Another Python finds only NumPy and the standard library beside them."""
    folder = write_model(WorkerSettings(bundles={"small": str(small_bundle)}), tmp_path, streams=True)
    code = (
        # What the environment loads by itself, such as a hook of setuptools, is in `before`.
        "import sys; before = {*sys.modules}; sys.path.insert(0, sys.argv[1]); "
        "import sd2rt.runtime.triton.worker_thread as w, "
        "sd2rt.runtime.triton.tensors, sd2rt.runtime.server.logs; "
        "files = {n for n, m in sys.modules.items() if getattr(m, '__file__', None)} - before; "
        "names = {n.partition('.')[0] for n in files}; "
        "print(w.__file__); print(*sorted(names - sys.stdlib_module_names))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    place, names = done.stdout.splitlines()
    assert place.startswith(str(folder))
    assert set(names.split()) - {"__mp_main__"} == {"numpy", "sd2rt"}
    assert not any(name.startswith("sd2rt.runtime.pipeline") for name in module_files())


def test_wrong_use_is_one_line(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RequestError, match="cannot be a Triton model's name"):
        write_model(WorkerSettings(bundles={"a b": str(small_bundle)}), tmp_path, streams=True)
    assert main(["triton", str(small_bundle), "-o", str(tmp_path / "m"), "--keep", "1"]) == 2
    assert main(["triton", str(tmp_path / "none"), "-o", str(tmp_path / "m")]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert not (tmp_path / "m").exists()
