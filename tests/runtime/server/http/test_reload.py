"""SIGHUP: keys are read again and bundles opened again, and no request is lost."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.recording.process import sd2rt
from benchmarks.serving.server_process import Client, Server
from sd2rt.engines.demo.build import build_demo

FIELDS = {"prompt": "a red circle", "seed": 1, "num_inference_steps": 4}


def reloaded(server: Server, times: int = 1) -> None:
    server.wait_until(lambda: sum(line.get("message") == "reloaded" for line in server.lines) == times)


def refused(server: Server) -> str:
    """Wait until a reload was refused, and return the reason."""
    server.wait_until(lambda: "nothing is reloaded" in server.log)
    messages = [str(line.get("message")) for line in server.lines]
    return next(message for message in messages if "nothing is reloaded" in message)


def replace_bundle(folder: Path, name: str, scratch: Path) -> None:
    """Exchange a bundle by renaming, as `sd2rt pull` and `sd2rt build --force` do."""
    build_demo(name, scratch / "new")
    folder.rename(scratch / "old")
    (scratch / "new").rename(folder)


def picture(answer: tuple[int, dict[str, Any]]) -> str:
    status, body = answer
    assert status == 200, body
    text: str = body["data"][0]["b64_json"]
    return text


def test_keys_are_read_again(demo_folders: dict[str, Path], tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("first\n")

    def status(client: httpx.Client, key: str) -> int:
        return client.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code

    with (
        Server(demo_folders["demo"], "--api-key-file", keys, session=True) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        assert (status(client, "first"), status(client, "second")) == (200, 401)
        keys.write_text("first\nsecond\n")
        server.process.send_signal(signal.SIGHUP)
        reloaded(server)
        assert (status(client, "first"), status(client, "second")) == (200, 200)
        keys.write_text("second\n")
        server.process.send_signal(signal.SIGHUP)
        reloaded(server, 2)
        assert (status(client, "first"), status(client, "second")) == (401, 200)
        keys.write_text("# none\n")
        server.process.send_signal(signal.SIGHUP)
        assert "holds no key" in refused(server)
        assert (status(client, "first"), status(client, "second")) == (401, 200)
        assert server.stop() == 0


def test_a_bundle_is_exchanged_under_traffic(tmp_path: Path) -> None:
    """Each picture is that of the one bundle or the other; what runs is finished by the worker that began it."""
    bundle = tmp_path / "demo"
    build_demo("demo", bundle)
    answers: list[tuple[int, dict[str, Any]]] = []
    over = threading.Event()
    with Server(bundle, session=True) as server, ThreadPoolExecutor(4) as threads:
        (before,) = server.workers()
        client = Client(server)
        first = picture(client.generate(FIELDS))
        images = server.get("/metrics")[1]

        def ask() -> None:
            own = Client(server)
            while not over.is_set():
                answers.append(own.generate(FIELDS))
            own.close()

        asking = [threads.submit(ask) for _ in range(3)]
        long = threads.submit(Client(server).generate, {**FIELDS, "num_inference_steps": 150, "n": 4})
        server.wait_until(lambda: len(answers) > 3)
        replace_bundle(bundle, "demo-v", tmp_path)
        server.process.send_signal(signal.SIGHUP)
        reloaded(server)
        during = len(answers)
        server.wait_until(lambda: len(answers) > during + 6)
        over.set()
        for each in asking:
            each.result()
        second = picture(client.generate(FIELDS))
        assert second != first
        assert {picture(answer) for answer in answers} == {first, second}
        assert long.result()[0] == 200
        server.wait_until(lambda: len(server.workers()) == 1)
        assert server.workers() != [before]
        assert b'kind="v"' in server.get("/metrics")[1]
        assert b'kind="base"' in images
        # Counters go on where they were.
        line = next(
            x for x in server.get("/metrics")[1].decode().splitlines() if x.startswith("sd2rt_images_total ")
        )
        assert float(line.split()[1]) == len(answers) + 2 + 4
        assert server.stop() == 0


def test_a_damaged_bundle_changes_nothing(tmp_path: Path) -> None:
    bundle = tmp_path / "demo"
    build_demo("demo", bundle)
    with Server(bundle, session=True) as server:
        workers = server.workers()
        first = picture(Client(server).generate(FIELDS))
        manifest = json.loads((bundle / "bundle.json").read_text())
        manifest["kind"] = "none"
        (bundle / "bundle.json").unlink()
        (bundle / "bundle.json").write_text(json.dumps(manifest))
        server.process.send_signal(signal.SIGHUP)
        assert "bundle.json" in refused(server)
        assert server.get("/readyz")[0] == 200
        assert picture(Client(server).generate(FIELDS)) == first
        assert server.workers() == workers
        assert server.stop() == 0


def test_a_drain_during_a_reload(demo_folders: dict[str, Path]) -> None:
    with Server(demo_folders["demo"], session=True) as server, ThreadPoolExecutor(1) as threads:
        work = threads.submit(Client(server).generate, {**FIELDS, "num_inference_steps": 100})
        server.wait_until(lambda: b"sd2rt_requests_running 1" in server.get("/metrics")[1])
        server.process.send_signal(signal.SIGHUP)
        server.wait_until(lambda: "reloading" in server.log)
        time.sleep(0.1)
        assert server.stop() == 0
        assert work.result()[0] == 200
        assert not server.workers()


def test_a_hangup_of_a_terminal_drains(demo_folders: dict[str, Path], tmp_path: Path) -> None:
    """Whoever closes a window does not leave a server behind."""
    terminal, own_end = pty.openpty()
    with subprocess.Popen(
        sd2rt("serve", str(demo_folders["demo"]), "--port", "0", "--log-format", "json"),
        stdin=own_end,
        stdout=own_end,
        stderr=own_end,
        start_new_session=True,
        # Standard input becomes the terminal of the session.
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as server:
        os.close(own_end)
        try:
            seen = b""
            while b'"ready"' not in seen:
                # Until the server ends: then there is nothing to read, which is an error.
                seen += os.read(terminal, 65536)
            os.close(terminal)
            assert server.wait(60) == 0
        finally:
            server.kill()


@pytest.mark.parametrize("times", [3])
def test_several_signals_are_one_after_another(demo_folders: dict[str, Path], times: int) -> None:
    with Server(demo_folders["demo"], session=True) as server:
        for _ in range(times):
            server.process.send_signal(signal.SIGHUP)
            time.sleep(0.05)
        reloaded(server, times)
        server.wait_until(lambda: len(server.workers()) == 1)
        assert Client(server).generate(FIELDS)[0] == 200
        assert server.stop() == 0
