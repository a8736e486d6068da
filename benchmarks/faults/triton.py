"""Faults under Triton: clients that leave, hostile requests, killed workers, stubs and servers.

The server is the one of nvidia-pytriton, clients are tritonclient's, and the demo is served by
``sd2rt triton``. After each case the next picture is that of an undisturbed request, and no process is left behind.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.deploy.triton_process import VARIABLE, Triton, find_venv
from benchmarks.faults.recorder import Outcome, Recorder
from benchmarks.recording import process
from benchmarks.recording.bundle import build_demo

CASES = 40
"""Clients that leave; there are as many hostile requests, half as many killed workers, and a quarter as many killed
stubs and servers."""
FIELDS: dict[str, Any] = {"prompt": "a small red circle", "seed": 7, "num_inference_steps": 8}
LONG: dict[str, Any] = {"prompt": "a large blue square", "seed": 1, "num_inference_steps": 150, "n": 10}
_SECONDS = 60.0
HOSTILE: tuple[tuple[dict[str, Any], str], ...] = (
    ({"options": "{"}, "invalid_json"),
    ({"options": "[" * 100_000}, "invalid_json"),
    ({"options": "[]"}, "invalid_value"),
    ({"options": '{"sampler": "none"}'}, "invalid_value"),
    ({"options": '{"priority": 7}'}, "invalid_value"),
    ({"options": '{"loras": [{"name": "none"}]}'}, "invalid_value"),
    ({"options": '{"unknown": 1}'}, "invalid_value"),
    ({"options": '{"deadline_ms": "now"}'}, "invalid_value"),
    ({"options": '{"guidance_scale": NaN}'}, "invalid_value"),
    ({"options": '{"image": "/etc/passwd"}'}, "invalid_value"),
    ({"width": 100, "height": 128}, "size_not_supported"),
    ({"width": 2**31 - 8, "height": 8}, "size_not_supported"),
    ({"num_inference_steps": 10**9}, "invalid_value"),
    ({"num_inference_steps": -1}, "invalid_value"),
    ({"n": 0}, "invalid_value"),
    ({"seed": -1}, "invalid_value"),
    ({"guidance_scale": float("nan")}, "invalid_value"),
    ({"prompt": "x" * 40_000}, "invalid_value"),
    # In base64: `/etc/passwd`, and the first bytes of a PNG.
    ({"image": "L2V0Yy9wYXNzd2Q="}, "invalid_image"),
    ({"image": "iVBORw0KGgo="}, "invalid_image"),
)
"""Fields beside the prompt, and the error's code."""


def run(recorder: Recorder, cases: int, seed: int) -> None:
    """Serve the demo through all groups of faults.

    Raises:
        SystemExit: nvidia-pytriton is not there.
    """
    venv = find_venv()
    if venv is None:
        raise SystemExit(
            f"{VARIABLE} names no environment with nvidia-pytriton and tritonclient: see docs/triton.md"
        )
    source = Random(seed)
    with tempfile.TemporaryDirectory(prefix="sd2rt-faults-") as name:
        folder = Path(name)
        repository = write_repository(build_demo(folder), folder / "models")
        with Triton(repository, venv) as server:
            expected = server.clients.ask("stream", fields=FIELDS)
            leaving(recorder, server, expected, cases, source)
            hostile(recorder, server, expected, cases)
            killed_workers(recorder, server, expected, max(cases // 2, 1), source)
        killed_stubs(recorder, repository, venv, expected, max(cases // 4, 1), source)
        killed_servers(recorder, repository, venv, expected, max(cases // 4, 1), source)


def write_repository(bundle: Path, repository: Path, *options: str) -> Path:
    """Run ``sd2rt triton``."""
    process.measure(process.sd2rt("triton", bundle, "-o", repository, *options))
    return repository


def leaving(recorder: Recorder, server: Triton, expected: dict[str, Any], cases: int, source: Random) -> None:
    """Cancel at a random response; the worker must give the request up."""
    for case in range(cases):
        given_up = _given_up(server)
        server.clients.ask("stream", fields=LONG, leave_after=source.randint(1, 8))
        ended = _until(lambda before=given_up: _given_up(server) > before)  # type: ignore[misc]
        outcome: Outcome = "held" if ended else "hang"
        recorder.record("clients that leave", _after(server, expected, outcome), str(case))


def hostile(recorder: Recorder, server: Triton, expected: dict[str, Any], cases: int) -> None:
    """Send requests that are wrong beside one that is right."""
    for case in range(cases):
        fields, code = HOSTILE[case % len(HOSTILE)]
        good = server.clients.send("stream", fields=FIELDS)
        answer = server.clients.ask("stream", fields={"prompt": "a", **fields})
        error = str(answer.get("error"))
        right = error.startswith(f"{code}: ") and "\n" not in error and _same(good.result(_SECONDS), expected)
        recorder.record("hostile requests", "held" if right else "wrong", f"{case} {code}", error[:200])


def killed_workers(
    recorder: Recorder, server: Triton, expected: dict[str, Any], cases: int, source: Random
) -> None:
    """Kill the worker in mid-request: an error at once, then the next worker."""
    for case in range(cases):
        if case:
            # Three deaths in a minute are another group's.
            time.sleep(31)
        answer = _killed_within(server, server.workers, case, source)
        right = answer is not None and str(answer.get("error")).startswith("worker_died: ")
        outcome: Outcome = "hang" if answer is None else "held" if right else "wrong"
        recorder.record("killed workers", _after(server, expected, outcome), str(case), str(answer)[:200])


def killed_stubs(
    recorder: Recorder, repository: Path, venv: Path, expected: dict[str, Any], cases: int, source: Random
) -> None:
    """Kill the Python backend's process in mid-request; Triton 2.51 starts no other, until the model is loaded again.

    Its worker must be gone, later requests must fail at once, and loading must restore the model. That server waits
    for the lost requests at SIGTERM, and so it is killed.
    """
    with Triton(repository, venv) as server:
        for case in range(cases):
            workers = server.workers()
            _killed_within(server, server.stubs, case, source, wait=0)
            error = str(server.clients.ask("stream", fields=FIELDS).get("error"))
            gone = _until(lambda before=workers: not set(before) & set(server.workers()))  # type: ignore[misc]
            server.load()
            outcome: Outcome = "wrong" if "not healthy" not in error else "held" if gone else "left behind"
            recorder.record(
                "killed stubs, model loaded again", _after(server, expected, outcome), str(case), error[:200]
            )
        server.kill()


def killed_servers(
    recorder: Recorder, repository: Path, venv: Path, expected: dict[str, Any], cases: int, source: Random
) -> None:
    """Kill the server in mid-request: stub and worker must end."""
    for case in range(cases):
        with Triton(repository, venv) as server:
            right = _same(server.clients.ask("stream", fields=FIELDS), expected)
            children = [*server.stubs(), *server.workers()]
            server.clients.send("stream", fields=LONG)
            time.sleep(source.uniform(0, 0.5))
            server.kill()
            gone = len(children) == 2 and _gone(children)
        outcome: Outcome = "held" if right and gone else "left behind" if right else "wrong"
        recorder.record("killed servers", outcome, str(case))


def _killed_within(
    server: Triton, victims: Callable[[], list[int]], case: int, source: Random, wait: float = _SECONDS
) -> dict[str, Any] | None:
    """Kill processes a moment after a request was sent; return its answer, or None if none came in time."""
    # Another request each time: one that was in two dead workers is refused.
    asked: Future[dict[str, Any]] = server.clients.send("stream", fields={**LONG, "seed": case})
    time.sleep(source.uniform(0.1, 0.6))
    for pid in victims():
        os.kill(pid, signal.SIGKILL)
    try:
        return asked.result(wait)
    except TimeoutError:
        return None


def _after(server: Triton, expected: dict[str, Any], outcome: Outcome) -> Outcome:
    """Return the outcome, or ``wrong`` or ``hang`` if the next picture is not the undisturbed one."""
    until = time.monotonic() + _SECONDS
    while True:
        answer = server.clients.ask("stream", fields=FIELDS)
        if not str(answer.get("error")).startswith("worker_down: "):
            return outcome if _same(answer, expected) else "wrong"
        if time.monotonic() > until:
            return "hang"
        time.sleep(0.1)


def _same(answer: dict[str, Any], expected: dict[str, Any]) -> bool:
    return "images" in expected and answer.get("images") == expected["images"]


def _given_up(server: Triton) -> int:
    return server.log.count(": ended after ")


def _gone(pids: list[int]) -> bool:
    return _until(lambda: not any(map(process.command_line, pids)))


def _until(holds: Callable[[], bool], seconds: float = 20.0) -> bool:
    try:
        process.wait_until(holds, seconds)
    except TimeoutError:
        return False
    return True
