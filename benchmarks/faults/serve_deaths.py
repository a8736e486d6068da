"""Deaths: of workers while they load, wait, step and decode; and of fronts."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

from benchmarks.faults.recorder import Recorder
from benchmarks.faults.served import LONG, Served, asked, is_alive, since, until
from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import Event, GenerationRequest, Stepped

Death = Callable[[Recorder, str, Served, int, Random], Awaitable[None]]
_READY_SECONDS = 60.0

_FRONT = """
import asyncio, sys
from sd2rt.runtime.server.generation import GenerationRequest
from sd2rt.runtime.server.worker_client import WorkerClient
from sd2rt.runtime.server.worker_settings import WorkerSettings

async def main():
    client = WorkerClient(WorkerSettings(bundles={"demo": sys.argv[1]}, threads=1))
    if sys.argv[2] == "loading":
        starting = asyncio.create_task(client.start())
        while not client.pids:
            await asyncio.sleep(0.001)
        print(client.pids["cpu"], flush=True)
        await starting
    else:
        await client.start()
    fields = {"prompt": "x", "num_inference_steps": 900}
    async for event in client.generate(GenerationRequest(request_id="a", model="demo", fields=fields)):
        print(client.pids["cpu"], flush=True)

asyncio.run(main())
"""


class _UnexpectedError(Exception):
    """A request ended in another way than by its worker's death."""


async def _in_a_step(served: Served, source: Random) -> None:
    await _kill_at(
        served, asked(1, num_inference_steps=LONG), lambda event: isinstance(event, Stepped), source
    )


async def _in_a_decode(served: Served, source: Random) -> None:
    def is_last(event: Event) -> bool:
        return isinstance(event, Stepped) and event.step == event.steps

    # The decode of such an image takes longer than the news of its last step.
    await _kill_at(served, asked(1, width=512, height=512), is_last, source)


async def _idle(served: Served, source: Random) -> None:
    await asyncio.sleep(source.random() / 10)
    os.kill(served.worker, signal.SIGKILL)


async def _by_its_engine(served: Served, source: Random) -> None:
    await _kill_at(served, asked(source.getrandbits(32), width=256, height=256), lambda event: False, source)


async def _kill_at(
    served: Served, request: GenerationRequest, when: Callable[[Event], bool], source: Random
) -> None:
    """Kill the worker at an event.

    Raises:
        _UnexpectedError: the request did not fail for that.
    """
    try:
        async for event in served.client.generate(request):
            if when(event):
                await asyncio.sleep(source.choice((0, 0.003, 0.02)) * source.random())
                if served.client.pids:
                    os.kill(served.worker, signal.SIGKILL)
    except ServerError as error:
        if error.code != "worker_died":
            raise _UnexpectedError(f"the request failed with {error.code}") from None
        return
    raise _UnexpectedError("the request was finished before the kill")


def _death(kill: Callable[[Served, Random], Awaitable[None]]) -> Death:
    async def death(recorder: Recorder, group: str, served: Served, case: int, source: Random) -> None:
        process, client = served.worker, served.client
        beside = asyncio.create_task(served.completed(asked(9, num_inference_steps=LONG)))
        await asyncio.sleep(source.random() / 20)
        start = time.monotonic()
        try:
            async with asyncio.timeout(_READY_SECONDS):
                await kill(served, source)
                start = time.monotonic()
                await asyncio.gather(beside, return_exceptions=True)
                await until(lambda: client.state != "ready" or served.worker != process)
                down = since(start)
                await until(lambda: client.state == "ready")
        except TimeoutError:
            recorder.record(group, "hang", f"{case}", f"{client.state} after {since(start)}")
            return
        except _UnexpectedError as error:
            recorder.record(group, "wrong", f"{case}", str(error))
            return
        finally:
            beside.cancel()
        ready = since(start)
        fault = await served.fault()
        if is_alive(process):
            recorder.record(group, "left behind", f"{case}", "the killed worker is alive")
        elif fault is not None:
            recorder.record(group, "wrong", f"{case}", fault)
        else:
            recorder.record(group, "held", f"{case}", f"down after {down}, ready again after {ready}")

    return death


DEATHS: dict[str, Death] = {
    "worker killed in a step": _death(_in_a_step),
    "worker killed in a decode": _death(_in_a_decode),
    "worker killed while it waits": _death(_idle),
    "worker killed by its engine": _death(_by_its_engine),
}


def killed_fronts(recorder: Recorder, bundle: Path, cases: int, seed: int) -> None:
    """Kill fronts, which threads started that have ended; their workers must end."""
    source = Random(seed)
    for case in range(cases):
        moment = ("loading", "step")[case % 2]
        fronts: list[subprocess.Popen[str]] = []
        thread = threading.Thread(
            target=lambda fronts=fronts, moment=moment: fronts.append(_front(bundle, moment))
        )
        thread.start()
        thread.join()
        (front,) = fronts
        assert front.stdout is not None
        worker = int(front.stdout.readline())
        time.sleep(source.random() / (2 if moment == "loading" else 20))
        was_alive = is_alive(worker)
        front.kill()
        front.wait()
        front.stdout.close()
        start = time.monotonic()
        while is_alive(worker) and time.monotonic() - start < _READY_SECONDS:
            time.sleep(0.005)
        label, group = f"{case}: {moment}", "front killed"
        if is_alive(worker):
            os.kill(worker, signal.SIGKILL)
            recorder.record(group, "left behind", label, "its worker is alive")
        elif not was_alive:
            recorder.record(group, "wrong", label, "its worker had ended before")
        else:
            recorder.record(group, "held", label, f"its worker ended after {since(start)}")


def _front(bundle: Path, moment: str) -> subprocess.Popen[str]:
    command = (sys.executable, "-P", "-c", _FRONT, str(bundle), moment)
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
