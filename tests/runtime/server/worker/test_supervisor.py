"""Faults of real worker processes: kills, hangs, garbage, memory, and the end of the front."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.served import FAULTY
from sd2rt.engines.errors import BundleError, EngineError
from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import Completed, Event, GenerationRequest, Stepped
from sd2rt.runtime.server.worker_client import WorkerClient
from sd2rt.runtime.server.worker_settings import WorkerSettings

from ..serving import Serving, completed, events_of, serve, until

LONG = 900
"""Steps that take seconds."""


def asked(number: int = 0, **fields: Any) -> GenerationRequest:
    own = {"prompt": f"a lighthouse {number}", "seed": number, "num_inference_steps": 3}
    return GenerationRequest(request_id=f"request-{number}", model="small", fields=own | fields)


@pytest.fixture(scope="module")
def settings(small_bundle: Path) -> WorkerSettings:
    return WorkerSettings(bundles={"small": str(small_bundle)}, threads=1)


@pytest.fixture
def serving(settings: WorkerSettings) -> Iterator[Serving]:
    with serve(settings) as serving:
        yield serving


async def kill_at(
    client: WorkerClient, request: GenerationRequest, when: Callable[[Event], bool]
) -> ServerError:
    """Kill the worker as soon as a request has an event; return the request's error."""
    try:
        async for event in client.generate(request):
            if when(event):
                os.kill(client.pids["cpu"], signal.SIGKILL)
    except ServerError as error:
        return error
    raise AssertionError("the request was finished")


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_killed_worker_is_replaced(serving: Serving) -> None:
    """In a step, and in a decode; requests beside it fail too, later ones give the same pictures as before."""
    client = serving.client
    before = serving.generate(asked(1))

    def is_last_step(event: Event) -> bool:
        return isinstance(event, Stepped) and event.step == event.steps

    async def kill(request: GenerationRequest, when: Callable[[Event], bool]) -> None:
        beside = asyncio.create_task(completed(client, asked(5, num_inference_steps=LONG)))
        first = client.pids["cpu"]
        error = await kill_at(client, request, when)
        assert (error.code, error.answer.status) == ("worker_died", 500)
        with pytest.raises(ServerError) as other:
            await beside
        assert other.value.code == "worker_died"
        assert client.stats.waiting == client.stats.running == 0
        await until(lambda: client.state != "ready", 1)
        with pytest.raises(ServerError) as refused:
            await completed(client, asked())
        assert refused.value.code == "worker_down"
        await until(lambda: client.state == "ready")
        assert client.pids["cpu"] != first
        assert not is_alive(first)

    serving(lambda: kill(asked(2, num_inference_steps=LONG), lambda event: isinstance(event, Stepped)))
    # One of its own images is being decoded when the last step is reported, and no other has.
    serving(lambda: kill(asked(3, width=512, height=512), is_last_step))
    assert client.stats.restarts == {"died": 2}
    assert serving.generate(asked(1)).images == before.images


def test_three_deaths_in_a_minute_are_a_failure(serving: Serving) -> None:
    async def kill_three() -> None:
        failed = asyncio.create_task(serving.client.wait_failed())
        for _ in range(3):
            assert not failed.done()
            await until(lambda: serving.client.state == "ready")
            os.kill(serving.client.pids["cpu"], signal.SIGKILL)
            await until(lambda: serving.client.state != "ready")
        await failed
        assert serving.client.state == "failed"
        assert serving.client.pids == {}
        with pytest.raises(ServerError) as refused:
            await completed(serving.client, asked())
        assert refused.value.code == "worker_down"

    serving(kill_three)


def test_a_request_that_kills_is_refused(settings: WorkerSettings) -> None:
    with serve(settings, command=FAULTY) as serving:
        deadly = asked(1, width=256, height=256)
        for _ in range(2):
            with pytest.raises(ServerError) as died:
                serving.generate(deadly)
            assert died.value.code == "worker_died"
            serving(lambda: until(lambda: serving.client.state == "ready"))
        with pytest.raises(ServerError, match="in 2 workers") as refused:
            serving.generate(deadly)
        assert refused.value.code == "poisoned"
        assert len(serving.generate(asked(2)).images) == 1


@pytest.mark.parametrize(
    ("width", "code", "retry"), [(192, "out_of_memory", None), (320, "not_finite", False)]
)
def test_a_failure_concerns_one_request(
    settings: WorkerSettings, width: int, code: str, retry: bool | None
) -> None:
    with serve(settings, command=FAULTY) as serving:
        alone = serving.generate(asked(1))

        async def together() -> list[Any]:
            requests = (asked(1), asked(2, width=width), asked(1))
            tasks = [asyncio.create_task(completed(serving.client, request)) for request in requests]
            return await asyncio.gather(*tasks, return_exceptions=True)

        first, failed, last = serving(together)
        assert failed.code == code
        assert failed.answer.retry is retry
        assert "\n" not in failed.message
        assert first.images == last.images == alone.images
        stats = serving.client.stats
        assert (stats.out_of_memory, sum(stats.nonfinite.values())) == (
            code == "out_of_memory",
            code == "not_finite",
        )
        assert stats.restarts == {}


def test_clients_that_leave_at_any_moment(serving: Serving) -> None:
    """Waiting, in a step, in a decode, before anything was sent: no place, no thread and no descriptor is kept."""
    source, client = random.Random(1), serving.client
    before = serving.generate(asked(1))

    async def leave(number: int) -> None:
        request = asked(number, num_inference_steps=source.choice((1, 3, 200)))
        task = asyncio.create_task(events_of(client, request))
        await asyncio.sleep(source.choice((0, 0.001, 0.005, 0.02, 0.1)) * source.random())
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def all_leave() -> None:
        for _ in range(5):
            await asyncio.gather(*(leave(number) for number in range(8)))
        await until(lambda: client.stats.waiting + client.stats.running == 0)

    process = client.pids["cpu"]
    fill_pools(serving)
    serving(all_leave)
    threads, descriptors = resources(process)
    serving(all_leave)
    again = resources(process)
    assert again[0] <= threads
    assert again[1] <= descriptors
    assert serving.generate(asked(1)).images == before.images
    assert client.pids["cpu"] == process


def fill_pools(serving: Serving) -> None:
    """Have threads made that pools make when several calls want one: they stay, and there are no more."""

    async def together() -> None:
        requests = [replace(asked(number), previews=True, partial_images=3) for number in range(12)]
        await asyncio.gather(*(completed(serving.client, request) for request in requests))

    for _ in range(2):
        serving(together)


def resources(process: int) -> tuple[int, int]:
    """Threads and descriptors of a process."""
    folder = Path(f"/proc/{process}")
    return len(list((folder / "task").iterdir())), len(list((folder / "fd").iterdir()))


def test_sixty_requests_leave_no_memory(serving: Serving) -> None:
    process = serving.client.pids["cpu"]
    fill_pools(serving)

    async def many(count: int) -> None:
        for start in range(0, count, 4):
            await asyncio.gather(
                *(completed(serving.client, asked(number)) for number in range(start, start + 4))
            )

    serving(lambda: many(20))
    before, (threads, descriptors) = memory_bytes(process), resources(process)
    serving(lambda: many(60))
    assert memory_bytes(process) - before <= 50 << 20
    assert resources(process)[0] <= threads
    assert resources(process)[1] <= descriptors


def memory_bytes(process: int) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


def test_a_worker_that_hangs_is_killed(small_bundle: Path) -> None:
    settings = WorkerSettings(bundles={"small": str(small_bundle)}, threads=1, silence_seconds=3)
    with serve(settings) as serving:

        async def stop() -> None:
            client = serving.client
            process = client.pids["cpu"]
            task = asyncio.create_task(completed(client, asked(num_inference_steps=LONG)))
            await until(lambda: client.stats.running)
            os.kill(process, signal.SIGSTOP)
            with pytest.raises(ServerError) as died:
                await task
            assert died.value.code == "worker_died"
            await until(lambda: client.state == "ready")
            assert not is_alive(process)
            assert client.stats.restarts == {"silent": 1}

        serving(stop)


@pytest.mark.parametrize("words", ["print(1)", "import os; os._exit(7)", "raise SystemExit"])
def test_a_worker_that_does_not_start(settings: WorkerSettings, words: str) -> None:
    with (
        pytest.raises(EngineError, match="died while it started"),
        serve(settings, command=(sys.executable, "-c", words)),
    ):
        pass


GARBAGE = """
import argparse, socket, time
parser = argparse.ArgumentParser()
parser.add_argument("--fd", type=int)
parser.add_argument("--parent")
end = socket.socket(fileno=parser.parse_args().fd)
end.sendall({sent!r})
time.sleep(60)
"""


@pytest.mark.parametrize("sent", [b"\x00" * 64, b"sd2w" + b"\xff" * 60, b"HTTP/1.1 200 OK\r\n\r\n"])
def test_garbage_of_a_worker_ends_it(settings: WorkerSettings, sent: bytes) -> None:
    command = (sys.executable, "-c", GARBAGE.format(sent=sent))
    with pytest.raises(EngineError, match="died while it started"), serve(settings, command=command):
        pass


@pytest.mark.parametrize("sent", [b"\x00" * 64, b"sd2w" + b"\xff" * 60])
def test_garbage_of_the_front_ends_a_worker(sent: bytes) -> None:
    with worker_process() as (process, end):
        end.sendall(sent)
        assert process.wait(60) == 1


def test_the_end_of_the_socket_ends_a_worker() -> None:
    with worker_process() as (process, end):
        end.close()
        assert process.wait(60) == 0


class worker_process:  # noqa: N801
    """A worker that was told nothing yet, with the other end of its socket."""

    def __enter__(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        self._end, theirs = socket.socketpair()
        with theirs:
            command = (
                sys.executable,
                "-P",
                "-m",
                "sd2rt.runtime.server.worker",
                "--fd",
                str(theirs.fileno()),
            )
            self._process = subprocess.Popen(
                (*command, "--parent", str(os.getpid())),
                pass_fds=(theirs.fileno(),),
                stderr=subprocess.DEVNULL,
            )
        return self._process, self._end

    def __exit__(self, *error: object) -> None:
        self._end.close()
        self._process.kill()
        self._process.wait()


def test_an_interrupt_of_the_terminal_does_not_end_a_worker(serving: Serving) -> None:
    process = serving.client.pids["cpu"]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(process, number)
    assert len(serving.generate(asked()).images) == 1
    assert serving.client.pids["cpu"] == process


FRONT = """
import asyncio, sys
from sd2rt.runtime.server.generation import GenerationRequest
from sd2rt.runtime.server.worker_client import WorkerClient
from sd2rt.runtime.server.worker_settings import WorkerSettings

async def main():
    client = WorkerClient(WorkerSettings(bundles={"small": sys.argv[1]}, threads=1))
    await client.start()
    fields = {"prompt": "x", "num_inference_steps": 900}
    async for event in client.generate(GenerationRequest(request_id="a", model="small", fields=fields)):
        print(client.pids["cpu"], flush=True)

asyncio.run(main())
"""


def test_the_end_of_the_front_ends_its_worker(small_bundle: Path) -> None:
    """A front that a thread started which has ended, killed in the middle of a step."""
    fronts: list[subprocess.Popen[str]] = []

    def start() -> None:
        command = (sys.executable, "-P", "-c", FRONT, str(small_bundle))
        fronts.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    (front,) = fronts
    assert front.stdout is not None
    worker = int(front.stdout.readline())
    # Neither the end of the thread, nor time, ends the worker.
    assert front.poll() is None
    assert is_alive(worker)
    front.kill()
    front.wait()
    front.stdout.close()
    end = time.monotonic() + 60
    while is_alive(worker):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_errors_of_a_start_keep_their_class(tmp_path: Path) -> None:
    settings = WorkerSettings(bundles={"small": str(tmp_path / "nowhere")})
    with pytest.raises(BundleError, match="does not exist"), serve(settings):
        pass


def test_several_devices_share_the_work(small_bundle: Path) -> None:
    """Two workers on one CPU; the death of one concerns its own requests alone."""
    settings = WorkerSettings(bundles={"small": str(small_bundle)}, threads=1, devices=("cpu", "cpu"))
    with serve(settings) as serving:
        client = serving.client
        links = client._links

        async def share() -> None:
            tasks = [
                asyncio.create_task(completed(client, asked(n, num_inference_steps=60))) for n in range(6)
            ]
            await until(lambda: sum(len(link.jobs) for link in links) == 6)
            assert all(link.jobs for link in links)
            process = links[0].supervisor.pid
            assert process is not None
            os.kill(process, signal.SIGKILL)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert any(isinstance(result, Completed) for result in results)
            died = [result for result in results if isinstance(result, ServerError)]
            assert {error.code for error in died} == {"worker_died"}
            # The other one takes requests meanwhile.
            assert client.state == "ready"
            await completed(client, asked(7))

        serving(share)
