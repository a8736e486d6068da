"""docs/examples: the script, the endpoint and the notebook work with the demo's bundle."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from sd2rt.engines.bundle.schema import Precision

from ..wheels import ROOT
from .conftest import copied

EXAMPLES = ROOT / "docs" / "examples"

TrainedBundle = Callable[[str, Precision], Path]


@pytest.fixture(scope="module")
def demo(trained_bundle: TrainedBundle) -> Path:
    return trained_bundle("demo", "fp32")


def test_script(demo: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-P",
        str(EXAMPLES / "contact_sheet.py"),
        str(demo),
        str(tmp_path / "sheet.png"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (4 * 128, 128)
        # The prompts ask for a white, a gray, a black and a white background.
        corners = [sheet.getpixel((128 * index + 4, 4)) for index in range(4)]
    brightness = [sum(corner) / 3 for corner in corners if isinstance(corner, tuple)]
    assert brightness[0] > 220
    assert 100 < brightness[1] < 200
    assert brightness[2] < 40
    assert brightness[3] > 220


def test_script_says_what_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-P", str(EXAMPLES / "contact_sheet.py"), str(tmp_path / "none"), "sheet.png"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 3
    assert completed.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def endpoint() -> ModuleType:
    spec = importlib.util.spec_from_file_location("endpoint", EXAMPLES / "endpoint.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # FastAPI resolves annotations by the module's name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def client(endpoint: ModuleType, demo: Path) -> Iterator[Any]:
    from fastapi.testclient import TestClient

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SD2RT_BUNDLE", str(demo))
        with TestClient(endpoint.app) as client:
            yield client


def test_endpoint_makes_the_image_of_its_seed(client: Any) -> None:
    request = {"prompt": "a red circle", "steps": 4, "seed": 7}
    first, again = (client.post("/images", json=request) for _ in range(2))
    assert first.status_code == 200, first.text
    assert first.headers["content-type"] == "image/png"
    assert first.content == again.content
    with Image.open(io.BytesIO(first.content)) as image:
        assert image.size == (128, 128)
    assert client.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"width": 100}, 400),
        ({"steps": 1000}, 422),
        ({"prompt": ""}, 422),
        ({"image": "/etc/passwd"}, 422),
    ],
)
def test_endpoint_refuses_what_it_cannot_do(client: Any, change: dict[str, Any], status: int) -> None:
    answer = client.post("/images", json={"prompt": "a red circle", "steps": 2} | change)
    assert answer.status_code == status
    assert "detail" in answer.json()


def test_endpoint_takes_requests_together(client: Any) -> None:
    answers: dict[int, bytes] = {}

    def ask(seed: int) -> None:
        answers[seed] = client.post("/images", json={"prompt": "a circle", "steps": 3, "seed": seed}).content

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, content in answers.items():
        request = {"prompt": "a circle", "steps": 3, "seed": seed}
        assert client.post("/images", json=request).content == content
    assert len(set(answers.values())) == 3


def test_a_cancelled_image_is_left(client: Any, endpoint: ModuleType) -> None:
    cancelled = threading.Event()
    cancelled.set()
    request = endpoint.ImageRequest(prompt="a red circle")
    assert endpoint.paint(endpoint.app.state.pipe, request, cancelled) is None
    assert client.post("/images", json={"prompt": "a red circle", "steps": 2}).status_code == 200


def test_notebook_runs_and_its_outputs_are_kept(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbformat
    from nbclient import NotebookClient

    copied(demo, tmp_path / "bundles" / "demo")
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(tmp_path))
    # Isolate the kernel from this computer's Jupyter settings.
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    file = EXAMPLES / "tour.ipynb"
    assert file.stat().st_size < 200_000
    # nbformat, like nbclient, is untyped.
    read: Any = nbformat.read
    kept, run = (read(file, as_version=4) for _ in range(2))
    NotebookClient(
        run, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert [printed(cell) for cell in run.cells] == [printed(cell) for cell in kept.cells]


def printed(cell: Any) -> str:
    """Text outputs of a cell; images may differ in their last bits on another CPU."""
    outputs = cell.get("outputs", [])
    return "".join(output.get("text") or output["data"].get("text/plain", "") for output in outputs)
