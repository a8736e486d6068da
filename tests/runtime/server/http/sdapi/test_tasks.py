"""Progress, interrupt and skip: each caller sees and ends its own requests only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import webuiapi

from benchmarks.serving.server_process import Server

from ..pictures import opened

LONG: dict[str, Any] = {
    "prompt": "a red circle",
    "steps": 1000,
    "width": 256,
    "height": 256,
    "sampler_name": "Euler",
    "seed": 1,
}


class Account:
    """A caller with a key of its own."""

    def __init__(self, server: Server, key: str, executor: ThreadPoolExecutor) -> None:
        self._base, self._auth, self._executor = f"{server.url}/sdapi/v1", ("anyone", key), executor

    def call(self, method: str, name: str, **fields: Any) -> Any:
        answer = httpx.request(method, f"{self._base}/{name}", auth=self._auth, timeout=120, **fields)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def start(self, **fields: Any) -> Future[Any]:
        """Ask for images, in a thread of its own."""
        return self._executor.submit(self.call, "POST", "txt2img", json=LONG | fields)

    def progress(self, **parameters: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.call("GET", "progress", params=parameters)
        return found

    def jobs(self, **parameters: Any) -> int:
        return int(self.progress(**parameters)["state"]["job_count"])

    def running(self, **parameters: Any) -> bool:
        return bool(self.progress(**parameters)["progress"] > 0)


@pytest.fixture(scope="module")
def server(demo_folders: dict[str, Path]) -> Iterator[Server]:
    with Server(
        demo_folders["demo"], "--api-key", "alpha", "--api-key", "beta", "--max-steps", "1000"
    ) as server:
        yield server


@pytest.fixture
def accounts(server: Server) -> Iterator[Callable[[str], Account]]:
    with ThreadPoolExecutor(4) as executor:
        yield lambda key: Account(server, key, executor)


def test_a_caller_ends_its_own(server: Server, accounts: Callable[[str], Account]) -> None:
    alpha, beta = accounts("alpha"), accounts("beta")
    first = alpha.start()
    server.wait_until(alpha.running)
    progress = alpha.progress()
    state = progress["state"]
    assert 0 < progress["progress"] < 1
    assert progress["eta_relative"] > 0
    assert state["job_count"] == 1
    assert state["sampling_steps"] == 1000
    assert 0 < state["sampling_step"] <= 1000
    assert state["job"] == "txt2img"
    assert opened(progress["current_image"]).size == (32, 32)
    assert alpha.progress(skip_current_image=True)["current_image"] is None
    second = beta.start(batch_size=2)
    server.wait_until(lambda: beta.jobs() == 1)
    # Nobody else's.
    beta.call("POST", "skip")
    assert second.result(60)["images"] == []
    assert alpha.running()
    third = beta.start()
    server.wait_until(lambda: beta.jobs() == 1)
    alpha.call("POST", "interrupt")
    answer = first.result(60)
    # The picture as far as it was, without settings that would make another.
    (picture,) = map(opened, answer["images"])
    assert picture.size == (256, 256)
    assert set(picture.info) <= {"xmp", "XML:com.adobe.xmp"}
    assert json.loads(answer["info"])["interrupted"] is True
    assert alpha.jobs() == 0
    server.wait_until(beta.running)
    alpha.call("POST", "interrupt")
    alpha.call("POST", "skip")
    assert beta.running()
    beta.call("POST", "interrupt")
    assert len(third.result(60)["images"]) == 1


def test_skip_goes_on_with_the_next_iteration(server: Server, accounts: Callable[[str], Account]) -> None:
    alpha = accounts("alpha")
    running = alpha.start(n_iter=2)
    server.wait_until(alpha.running)
    assert alpha.jobs() == 2
    alpha.call("POST", "skip")
    server.wait_until(lambda: alpha.jobs() == 1)
    assert not running.done()
    alpha.call("POST", "interrupt")
    answer = running.result(60)
    # One that was skipped, and a second if it had begun.
    assert 1 <= len(answer["images"]) <= 2
    assert json.loads(answer["info"])["all_seeds"] == [1, 2][: len(answer["images"])]


def test_several_pictures_at_once_are_given_up(server: Server, accounts: Callable[[str], Account]) -> None:
    alpha = accounts("alpha")
    running = alpha.start(batch_size=2)
    server.wait_until(alpha.running)
    alpha.call("POST", "interrupt")
    assert running.result(60)["images"] == []


def test_finished_iterations_are_answered(server: Server, accounts: Callable[[str], Account]) -> None:
    alpha = accounts("alpha")
    running = alpha.start(n_iter=10, steps=10)
    server.wait_until(lambda: alpha.progress()["state"]["job_no"] > 0 or running.done())
    alpha.call("POST", "interrupt")
    answer = running.result(60)
    assert 1 <= len(answer["images"]) <= 10
    assert json.loads(answer["info"])["all_seeds"] == list(range(1, 1 + len(answer["images"])))


def test_tasks_by_their_names(server: Server, accounts: Callable[[str], Account]) -> None:
    alpha, beta = accounts("alpha"), accounts("beta")
    one = alpha.start(force_task_id="one")
    server.wait_until(lambda: alpha.running(task_id="one"))
    two = alpha.start(force_task_id="two", batch_size=2)
    server.wait_until(lambda: alpha.jobs(task_id="two") == 1)
    assert alpha.jobs() == 2
    assert beta.jobs(task_id="one") == 0
    beta.call("POST", "interrupt", params={"task_id": "one"})
    alpha.call("POST", "interrupt", params={"task_id": "two"})
    assert two.result(60)["images"] == []
    assert alpha.running(task_id="one")
    alpha.call("POST", "interrupt", params={"task_id": "one"})
    assert len(one.result(60)["images"]) == 1


def test_options_are_a_callers_own(accounts: Callable[[str], Account]) -> None:
    alpha, beta = accounts("alpha"), accounts("beta")
    alpha.call("POST", "options", json={"samples_format": "webp"})
    assert alpha.call("GET", "options")["samples_format"] == "webp"
    assert beta.call("GET", "options")["samples_format"] == "png"
    sent = alpha.call("POST", "txt2img", json=LONG | {"steps": 1, "width": 64, "height": 64})
    assert opened(sent["images"][0]).format == "WEBP"


def test_keys(server: Server) -> None:
    address = f"{server.url}/sdapi/v1/samplers"
    for auth in (None, ("alpha", "wrong"), ("alpha", "")):
        refused = httpx.get(address, auth=auth)
        assert refused.status_code == 401
        assert "Basic" in refused.headers["www-authenticate"]
        assert refused.json()["detail"]
    assert httpx.get(address, headers={"authorization": "Bearer beta"}).status_code == 200
    assert httpx.get(f"{server.url}/v1/models", auth=("anyone", "alpha")).status_code == 401


def test_the_clients_own_way_to_send_a_key(server: Server) -> None:
    api = webuiapi.WebUIApi(baseurl=f"{server.url}/sdapi/v1", username="anyone", password="alpha")
    assert "Euler a" in api.util_get_sampler_names()
    assert api.txt2img(prompt="a red circle", steps=1, width=64, height=64).image.size == (64, 64)


def test_a_client_that_leaves_gives_up(server: Server, accounts: Callable[[str], Account]) -> None:
    alpha = accounts("alpha")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{server.url}/sdapi/v1/txt2img",
            json=LONG,
            auth=("anyone", "alpha"),
            timeout=httpx.Timeout(30, read=0.2),
        )
    server.wait_until(lambda: alpha.jobs() == 0)
