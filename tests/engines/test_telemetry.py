"""Imports of packages that report their use, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SWITCHES = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY")

# Records the switches when each package is found, which is before any of its code runs.
WATCHED = f"""
import os, sys, threading
SWITCHES = {SWITCHES!r}
class Watch:
    found = {{}}
    def find_spec(self, name, path=None, target=None):
        self.found.setdefault(name, [os.environ.get(switch) for switch in SWITCHES])
sys.meta_path.insert(0, Watch())
before = dict(os.environ)
from sd2rt.engines.telemetry import import_without_telemetry
"""


def run(code: str, home: Path, **environment: str) -> str:
    """Run code with a home folder and these variables, check that it left the environment, return its log."""
    kept = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    child = subprocess.run(
        [sys.executable, "-c", f"{WATCHED}{code}\nassert dict(os.environ) == before"],
        env=kept | {"HOME": str(home), "CI": ""} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return child.stderr


@pytest.mark.parametrize(
    ("package", "switch"),
    [("onnxruntime", "ORT_DISABLE_TELEMETRY"), ("huggingface_hub.constants", "HF_HUB_DISABLE_TELEMETRY")],
)
def test_off_during_the_import_only(package: str, switch: str, tmp_path: Path) -> None:
    log = run(
        f"import_without_telemetry({package!r}); import_without_telemetry({package!r})\n"
        f"seen = dict(zip(SWITCHES, Watch.found[{package!r}]))\n"
        f"assert seen == dict.fromkeys(SWITCHES) | {{{switch!r}: '1'}}, seen",
        tmp_path,
    )
    assert log == ""
    assert not any(tmp_path.iterdir())


def test_export_asks_for_no_telemetry_of_the_hub(tmp_path: Path) -> None:
    code = "import sd2rt.export; import huggingface_hub.constants as hub; assert hub.HF_HUB_DISABLE_TELEMETRY"
    assert run(code, tmp_path) == ""


def test_openvino_does_not_import_its_telemetry(tmp_path: Path) -> None:
    pytest.importorskip("openvino_telemetry")
    log = run(
        "import_without_telemetry('openvino')\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]\n"
        "from openvino_telemetry import Telemetry",
        tmp_path,
    )
    assert log == ""
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("choice", ["0", "1", ""])
@pytest.mark.parametrize(
    ("package", "switch"),
    [
        ("onnxruntime", "ORT_DISABLE_TELEMETRY"),
        ("huggingface_hub.constants", "HF_HUB_DISABLE_TELEMETRY"),
        ("huggingface_hub.constants", "DISABLE_TELEMETRY"),
    ],
)
def test_a_choice_is_left_alone(package: str, switch: str, choice: str, tmp_path: Path) -> None:
    log = run(
        f"import_without_telemetry({package!r})\n"
        f"seen = dict(zip(SWITCHES, Watch.found[{package!r}]))\n"
        f"assert seen == dict.fromkeys(SWITCHES) | {{{switch!r}: {choice!r}}}, seen",
        tmp_path,
        **{switch: choice},
    )
    assert log == ""


def test_a_consent_to_openvino_is_left_alone(tmp_path: Path) -> None:
    pytest.importorskip("openvino_telemetry")
    (tmp_path / "intel").mkdir()
    # A refusal, so that this test sends nothing.
    (tmp_path / "intel/openvino_telemetry").write_text("0")
    run("import_without_telemetry('openvino'); assert 'openvino_telemetry' in sys.modules", tmp_path)


@pytest.mark.parametrize("package", ["onnxruntime", "huggingface_hub.constants"])
def test_too_late_is_logged_once(package: str, tmp_path: Path) -> None:
    late = (
        "import logging; logging.basicConfig(format='%(message)s')\n"
        f"sys.modules[{package!r}] = sys  # as if imported by the host\n"
    )
    log = run(f"{late}for _ in range(3): import_without_telemetry({package!r})", tmp_path)
    assert log.count("\n") == 1
    assert package in log
    assert "DISABLE_TELEMETRY=1" in log
    chosen = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    assert run(f"{late}import_without_telemetry({package!r})", tmp_path, **chosen) == ""


def test_threads_import_at_once(tmp_path: Path) -> None:
    log = run(
        """
barrier, modules = threading.Barrier(16), []
def load(package):
    barrier.wait()
    modules.append(import_without_telemetry(package))
names = ["onnxruntime", "huggingface_hub.constants"] * 8
threads = [threading.Thread(target=load, args=(name,)) for name in names]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(modules) == 16 and len(set(map(id, modules))) == 2
assert Watch.found["onnxruntime"][0] == "1"
assert Watch.found["huggingface_hub.constants"][1] == "1"
""",
        tmp_path,
    )
    assert log == ""


def test_nothing_remains_of_a_failed_import(tmp_path: Path) -> None:
    code = """
sys.modules["onnxruntime.capi"] = None
for _ in range(2):
    try: import_without_telemetry("onnxruntime")
    except ImportError: pass
    else: raise SystemExit("imported")
"""
    run(code, tmp_path)
