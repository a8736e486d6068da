"""Things that operators rely on: processes, ports, ids, rates, deadlines, LoRAs, exit codes."""

from __future__ import annotations

import base64
import io
import os
import shutil
import signal
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from benchmarks.recording.process import memory
from benchmarks.serving.server_process import Server
from sd2rt.runtime import Pipeline

FIELDS: dict[str, Any] = {"prompt": "a red circle", "num_inference_steps": 3, "seed": 1}
FRONT_BYTES = 80 << 20
UNWANTED = {"front": ("libtorch", "numpy", "PIL", "onnxruntime", "openvino"), "worker": ("libtorch",)}


def post(server: Server, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    return httpx.post(
        f"{server.url}/v1/images/generations", json=FIELDS | fields, headers=headers or {}, timeout=120
    )


def libraries(pid: int) -> set[str]:
    """Paths of the shared libraries that a process has loaded."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if ".so" in line and len(line.split()) > 5}


def test_processes_are_lean(demo_folders: dict[str, Path]) -> None:
    """No process has PyTorch; the front has neither NumPy nor an engine, and little memory."""
    with Server(demo_folders["demo"]) as server:
        assert post(server).status_code == 200
        (worker,) = server.workers()
        for name, pid in (("front", server.process.pid), ("worker", worker)):
            loaded = [path for path in libraries(pid) for word in UNWANTED[name] if word in path]
            assert loaded == []
        assert memory(server.process.pid)[0] <= FRONT_BYTES


def test_request_ids(demo_server: Server) -> None:
    assert post(demo_server, {"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for given in (b"", b"a" * 200, b"a b", b"\xff"):
        made = httpx.get(f"{demo_server.url}/version", headers={b"x-request-id": given}).headers[
            "x-request-id"
        ]
        assert made.encode() != given
        assert len(made) == 32
    for path in ("/nothing", "/v1/models/x", "/livez", "/metrics"):
        assert httpx.get(demo_server.url + path).headers["x-request-id"]
    assert httpx.put(f"{demo_server.url}/livez").headers["x-request-id"]
    demo_server.wait_until(lambda: any(line.get("request_id") == "mine-1" for line in demo_server.lines))


def test_prompts_are_not_logged(demo_server: Server) -> None:
    assert post(demo_server, prompt="a very private circle").status_code == 200
    assert post(demo_server, prompt="a very private circle", n=99).status_code == 400
    assert "very private" not in demo_server.log


def test_metrics_of_a_real_server(demo_server: Server) -> None:
    assert post(demo_server).status_code == 200
    assert post(demo_server, model="a\nb").status_code == 404
    text = httpx.get(f"{demo_server.url}/metrics").text
    for name in (
        'sd2rt_requests_total{endpoint="generations",model="demo",outcome="ok"}',
        'sd2rt_requests_total{endpoint="generations",model="",outcome="model_not_found"}',
        'sd2rt_stage_duration_seconds_count{stage="step"}',
        'sd2rt_step_cost_seconds{batch="1"}',
        'sd2rt_worker_up{device="cpu"} 1.0',
        'sd2rt_device_memory_bytes{device="cpu"}',
        'sd2rt_bundle_info{identity="',
        'sd2rt_batch_size_bucket{le="1"}',
    ):
        assert name in text
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt install prometheus)")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_port_for_metrics(demo_folders: dict[str, Path]) -> None:
    """It needs no key, and serves nothing else; the main port has no metrics then."""
    with Server(demo_folders["demo"], "--metrics-port", "0", "--api-key", "k") as server:
        assert server.metrics_url is not None
        assert "sd2rt_build_info" in httpx.get(f"{server.metrics_url}/metrics").text
        assert httpx.get(f"{server.metrics_url}/livez").status_code == 200
        for path in ("/v1/models", "/version", "/openapi.json"):
            assert httpx.get(server.metrics_url + path).status_code == 404
        headers = {"authorization": "Bearer k"}
        assert httpx.get(f"{server.url}/metrics", headers=headers).status_code == 404
        assert httpx.get(f"{server.url}/version", headers=headers).status_code == 200
        assert httpx.post(f"{server.metrics_url}/v1/images/generations", json=FIELDS).status_code == 404


def test_rates(demo_folders: dict[str, Path]) -> None:
    with Server(demo_folders["demo"], "--rate-limit", "2") as server:
        answers = [post(server) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[-1].json()["error"]["code"] == "rate_limited"
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 30
        assert server.get("/livez")[0] == 200


def test_deadlines(demo_server: Server) -> None:
    late = post(demo_server, deadline_ms=1, num_inference_steps=50, n=10)
    assert (late.status_code, late.json()["error"]["code"]) == (429, "deadline_unreachable")
    assert post(demo_server, deadline_ms=60_000, priority="interactive").status_code == 200


def test_loras_by_name(demo_folders: dict[str, Path], demo_lora: Path) -> None:
    """A request chooses among the operator's, and its picture is that of the library with the same LoRA."""
    with Server(demo_folders["demo"], "--lora", f"ink={demo_lora}") as server:
        plain = post(server)
        inked = post(server, loras=[{"name": "ink", "scale": 0.5}])
        assert plain.status_code == inked.status_code == 200, inked.text
        assert post(server, loras=[{"name": "other"}]).status_code == 400
        assert httpx.get(f"{server.url}/v1/models/demo").json()["sd2rt"]["loras"] == ["ink"]
        tagged = httpx.post(
            f"{server.url}/sdapi/v1/txt2img",
            json={"prompt": "a red circle<lora:ink:0.5>", "steps": 3, "seed": 1},
            timeout=120,
        )
        assert tagged.status_code == 200, tagged.text
        (listed,) = httpx.get(f"{server.url}/sdapi/v1/loras").json()
        assert listed["name"] == listed["alias"] == "ink"
    with Pipeline.open(demo_folders["demo"], device="cpu") as pipeline:
        assert picture(plain).tobytes() == pipeline(**FIELDS).images[0].tobytes()
        pipeline.load_lora(demo_lora, 0.5)
        expected = pipeline(**FIELDS).images[0]
    assert picture(inked).tobytes() == expected.tobytes()
    by_tag = Image.open(io.BytesIO(base64.b64decode(tagged.json()["images"][0])))
    assert by_tag.tobytes() == expected.tobytes()
    assert picture(plain).tobytes() != expected.tobytes()


def picture(answer: httpx.Response) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))


def test_three_deaths_end_the_server(demo_folders: dict[str, Path]) -> None:
    with Server(demo_folders["demo"]) as server:
        for _ in range(3):
            server.wait_until(lambda: bool(server.workers()))
            for worker in server.workers():
                os.kill(worker, signal.SIGKILL)
            for status in (503, 200):
                server.wait_until(partial(reached, server, status))
        assert server.wait() == 5
        assert server.log.strip().splitlines()[-1].startswith("sd2rt: the worker died three times")


def reached(server: Server, status: int) -> bool:
    """Return whether ``/readyz`` has a status, or the server has ended."""
    try:
        return server.get("/readyz")[0] == status
    except OSError:
        server.process.wait(60)
        return True


def test_a_damaged_bundle(demo_folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(demo_folders["demo"], tmp_path / "demo")
    graph = next((tmp_path / "demo").rglob("*.onnx"))
    content = bytearray(graph.read_bytes())
    content[100] ^= 255
    graph.write_bytes(content)
    with pytest.raises(RuntimeError, match="ended with 3") as error:
        Server(tmp_path / "demo")
    assert "has sha256" in str(error.value)
