"""A real Triton Inference Server with its Python backend, from the package nvidia-pytriton, and clients of it."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.recording import process

VARIABLE = "SD2RT_TRITON_VENV"
_DEFAULT = Path(__file__).resolve().parents[2] / ".venv-triton"
_CLIENT = Path(__file__).with_name("triton_client.py")


def find_venv() -> Path | None:
    """Return the environment with nvidia-pytriton and tritonclient that ``SD2RT_TRITON_VENV`` names, or None."""
    venv = Path(os.environ.get(VARIABLE) or _DEFAULT)
    return venv if (venv / "bin" / "python").exists() and _packages(venv) is not None else None


class Triton:
    """A server of a model repository, on free ports, with a process of clients; a context manager that ends both.

    Args:
        repository: of models, all of which are loaded.
        venv: environment with nvidia-pytriton and tritonclient.

    Raises:
        RuntimeError: it was not ready in time; with the last lines of its log.
    """

    def __init__(self, repository: Path, venv: Path) -> None:
        packages = _packages(venv)
        assert packages is not None
        server = packages / "pytriton" / "tritonserver"
        self._folder = Path(tempfile.mkdtemp(prefix="sd2rt-triton-"))
        backend = self._folder / "backends" / "python"
        shutil.copytree(server / "backends" / "python", backend)
        version = packages.parent.name.removeprefix("python")
        shutil.copy(server / "python_backend_stubs" / version / "triton_python_backend_stub", backend)
        self._repository = repository
        self.http_port, self.grpc_port = process.free_ports(2)
        self._log = self._folder / "log"
        # The stub finds its Python by PATH; the server's libraries lie beside it in the wheel.
        environment = os.environ | {
            "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
            "VIRTUAL_ENV": str(venv),
            "PYTHONPATH": str(packages),
        }
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    str(server / "bin" / "tritonserver"),
                    f"--model-repository={repository}",
                    f"--backend-directory={backend.parent}",
                    "--model-control-mode=explicit",
                    "--load-model=*",
                    "--disable-auto-complete-config",
                    "--allow-metrics=false",
                    "--http-address=127.0.0.1",
                    "--grpc-address=127.0.0.1",
                    f"--http-port={self.http_port}",
                    f"--grpc-port={self.grpc_port}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        try:
            self.ready_seconds = self._wait_ready()
            self.clients = Clients(venv, f"127.0.0.1:{self.grpc_port}", f"127.0.0.1:{self.http_port}")
        except BaseException:
            self.kill()
            raise

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def post(self, path: str, body: Any = None, timeout: float = 60) -> tuple[int, str]:
        """POST JSON on a connection of its own; return status and body.

        Raises:
            OSError: no answer within ``timeout``.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=timeout)
        try:
            connection.request("POST", path, json.dumps({} if body is None else body))
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def load(self, model: str = "demo") -> None:
        """Load a model's newest version, as an operator does by Triton's repository API.

        Triton does nothing if no file has changed, also if the model's process is dead.

        Raises:
            RuntimeError: it was refused.
        """
        for file in (self._repository / model).glob("[0-9]*/model.py"):
            file.touch()
        status, body = self.post(f"/v2/repository/models/{model}/load")
        if status != 200:
            raise RuntimeError(body)

    def stubs(self) -> list[int]:
        """Processes of the Python backend."""
        return self._processes("triton_python")

    def workers(self) -> list[int]:
        """Processes of workers."""
        return self._processes("sd2rt.runtime.server.worker")

    def _processes(self, name: str) -> list[int]:
        return [pid for pid in process.tree(self.process.pid) if name in process.command_line(pid)]

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        """Kill the server; stubs and workers end by themselves."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clients.close()
        try:
            if self.process.poll() is None:
                self.stop()
        except subprocess.TimeoutExpired:
            self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait_ready(self, timeout: float = 120) -> float:
        began = time.monotonic()
        while time.monotonic() - began < timeout and self.process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=5)
                connection.request("GET", "/v2/health/ready")
                if connection.getresponse().status == 200:
                    return time.monotonic() - began
            time.sleep(0.05)
        raise RuntimeError(f"Triton was not ready within {timeout} s:\n{self.log[-3000:]}")


class Clients:
    """A process with tritonclient, which sends any number of requests at once."""

    def __init__(self, venv: Path, grpc: str, address: str) -> None:
        self._process = subprocess.Popen(
            [str(venv / "bin" / "python"), str(_CLIENT), grpc, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._numbers = itertools.count()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, op: str, **command: Any) -> Future[dict[str, Any]]:
        """Send a command of :mod:`benchmarks.deploy.triton_client`."""
        number = next(self._numbers)
        future: Future[dict[str, Any]] = Future()
        self._waiting[number] = future
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": number, "op": op, **command}) + "\n")
        self._process.stdin.flush()
        return future

    def ask(self, op: str, timeout: float = 120, **command: Any) -> dict[str, Any]:
        """Send a command, and wait for its answer.

        Raises:
            TimeoutError: no answer within ``timeout``.
        """
        return self.send(op, **command).result(timeout)

    def close(self) -> None:
        # Its threads may wait for a server that is dead.
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            self._waiting.pop(answer["id"]).set_result(answer)


def _packages(venv: Path) -> Path | None:
    return next(
        (each.parent for each in sorted(venv.glob("lib/python3.*/site-packages/nvidia_pytriton.libs"))), None
    )
