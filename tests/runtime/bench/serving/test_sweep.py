"""Requests at random times, and what is counted of their answers."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.runtime.bench.serving.client import Answer, Target
from sd2rt.runtime.bench.serving.load import MAX_OPEN, Arrival, Outcome, offer, poisson_arrivals
from sd2rt.runtime.bench.serving.sweep import SweepSettings, _case, measure

Answering = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]


@contextmanager
def server(answering: Answering) -> Iterator[Target]:
    """Serve a model named m, and answer requests for images by a function."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": "m"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(*answering(body))

        def log_message(self, *_: object) -> None:
            pass

        def _send(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    try:
        yield Target(f"http://127.0.0.1:{httpd.server_address[1]}")
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


def test_arrivals_are_a_poisson_process() -> None:
    arrivals = poisson_arrivals(50, 100, (4, 20), seed=1, fields={"prompt": "a"})
    # 5000 expected, with a standard deviation of 71.
    assert 4700 < len(arrivals) < 5300
    times = [arrival.at for arrival in arrivals]
    assert times == sorted(times)
    assert times[-1] < 100
    gaps = [b - a for a, b in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    # Gaps of an exponential distribution have a standard deviation equal to their mean.
    assert variance**0.5 == pytest.approx(mean, rel=0.06)
    assert {arrival.fields["num_inference_steps"] for arrival in arrivals} == {4, 20}
    assert arrivals == poisson_arrivals(50, 100, (4, 20), seed=1, fields={"prompt": "a"})
    assert arrivals != poisson_arrivals(50, 100, (4, 20), seed=2, fields={"prompt": "a"})


def test_requests_do_not_wait_for_answers() -> None:
    """All are open at once before the first is answered."""
    count = 20
    open_at_once = threading.Barrier(count, timeout=30)

    def answering(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        open_at_once.wait()
        return 200, {}

    assert count <= MAX_OPEN
    with server(answering) as target:
        outcomes = offer(target, [Arrival(0.0, {"seed": number}) for number in range(count)])
    assert [outcome.answer.status for outcome in outcomes] == [200] * count
    assert {outcome.arrival.fields["seed"] for outcome in outcomes} == set(range(count))


def test_latency_counts_from_the_arrival() -> None:
    turn = threading.Lock()

    def answering(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with turn:
            time.sleep(0.02)
        return 200, {}

    with server(answering) as target:
        outcomes = offer(target, [Arrival(0.0, {}) for _ in range(5)])
    assert max(outcome.seconds for outcome in outcomes) >= 5 * 0.02


def test_a_case_counts_good_answers_refusals_and_silence() -> None:
    settings = SweepSettings(Target("http://a"), "a", seconds=10.0, objective=3.0)
    alone = {4: 1.0, 20: 2.0}

    def outcome(steps: int, seconds: float, status: int = 200, code: str | None = None) -> Outcome:
        return Outcome(Arrival(0.0, {"num_inference_steps": steps}), seconds, Answer(status, code))

    outcomes = [
        outcome(4, 3.0),
        outcome(4, 3.1),
        outcome(20, 6.0),
        outcome(4, 0.01, 429, "queue_full"),
        outcome(4, 1.0, 0, "ConnectionResetError"),
    ]
    case = _case(outcomes, alone, settings, took=12.0)
    assert case["statuses"] == {"200": 3, "429 queue_full": 1, "no answer": 1}
    assert (case["requests"], case["good"], case["goodput"], case["images_per_second"]) == (5, 0.4, 0.2, 0.25)
    assert case["latency_seconds"]["p50"] == 3.1
    assert case["slowdown"]["max"] == 3.1
    assert _case([], alone, settings, took=1.0)["good"] is None


def test_a_sweep() -> None:
    asked: list[dict[str, Any]] = []

    def answering(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        asked.append(body)
        busy = len(asked) % 5 == 0 and len(asked) > 10
        return (429, {"error": {"code": "queue_full"}}) if busy else (200, {"data": []})

    told: list[tuple[str, int, int]] = []
    with server(answering) as target:
        settings = SweepSettings(target, "a fox", rates=(40.0, 80.0), seconds=1.0, steps=(2, 3, 3))
        result = measure(settings, lambda *words: told.append(words))
    assert [each["steps"] for each in result["alone"]] == [2, 3]
    assert [case["rate"] for case in result["cases"]] == [40.0, 80.0]
    for case in result["cases"]:
        assert case["requests"] == sum(case["statuses"].values()) > 10
        assert case["statuses"]["429 queue_full"] > 0
        assert case["load"] == pytest.approx(case["rate"] / result["serial_rate"], rel=1e-4)
    assert all(body["prompt"] == "a fox" and body["model"] == "m" for body in asked)
    assert told[-1][1] == told[-1][2] == result["cases"][-1]["requests"]


@pytest.mark.parametrize(
    "url", ["", "host:8000", "ftp://host", "http://", "http://host:x", "http://[::1", "/etc"]
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(RequestError, match="is not a server's URL"):
        Target(url)


def test_no_server_no_model_and_a_failing_one() -> None:
    with server(lambda body: (500, {"error": {"code": "worker_died"}})) as target:
        with pytest.raises(RequestError, match="no model x: use m"):
            measure(SweepSettings(target, "a", model="x"))
        with pytest.raises(EngineError, match="500 worker_died to a request of 4 steps"):
            measure(SweepSettings(target, "a"))
    with pytest.raises(EngineError, match="no server answers at"):
        measure(SweepSettings(target, "a"))
