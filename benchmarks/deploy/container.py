"""A container of namespaces and mounts, as Docker makes it: read-only root, a volume, the image's user."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from benchmarks.recording import process


class Container:
    """A running image; a context manager that kills what is left of it.

    Args:
        root: the image's files; they are mounted, and not written.
        config: the image's configuration, as Docker stores it.
        cache: folder that is mounted at /cache, of the image's user.
        environment: variables beside the image's.
    """

    def __init__(self, root: Path, config: dict[str, Any], cache: Path, environment: dict[str, str]) -> None:
        self._config = config
        (self.port,) = process.free_ports(1)
        variables = [*config["Env"], f"SD2RT_PORT={self.port}", *(f"{k}={v}" for k, v in environment.items())]
        self._environment = variables
        command = [*config["Entrypoint"], *(config["Cmd"] or [])]
        at = shlex.quote(str(root))
        script = (
            f"set -e; mount --bind {at} {at}; mount -o remount,ro,bind {at}; mount -t tmpfs tmpfs {at}/tmp; "
            f"mount --bind {shlex.quote(str(cache))} {at}/cache; mount -t proc proc {at}/proc; "
            f"mount -t tmpfs tmpfs {at}/dev; for each in null zero urandom; do touch {at}/dev/$each; "
            f"mount --bind /dev/$each {at}/dev/$each; done; mkdir {at}/dev/shm; "
            f"mount -t tmpfs -o mode=1777 tmpfs {at}/dev/shm; "
            f"exec chroot --userspec={config['User']} {at} "
            f"/usr/bin/env -i {shlex.join(variables)} {shlex.join(command)}"
        )
        self._log = tempfile.NamedTemporaryFile("w+", prefix="sd2rt-container-", suffix=".log")  # noqa: SIM115
        self.began = time.monotonic()
        self._process = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=self._log.file,
            stderr=self._log.file,
        )

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text(errors="replace")

    @property
    def front(self) -> int:
        """The first process in the container, as this machine numbers it."""
        return [*process.tree(self._process.pid)][1]

    def wait(self, timeout: float) -> int:
        """Wait for its end, and return its exit code."""
        return self._process.wait(timeout)

    def stop(self) -> int:
        """Send SIGTERM to its first process, and return the exit code."""
        os.kill(self.front, signal.SIGTERM)
        return self.wait(60)

    def wait_ready(self, timeout: float = 120) -> float:
        """Wait for ``/readyz``; return the seconds since its start.

        Raises:
            RuntimeError: it ended, or took too long.
        """
        while time.monotonic() - self.began < timeout and self._process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self._request("GET", "/readyz")[0] == 200:
                    return time.monotonic() - self.began
            time.sleep(0.02)
        raise RuntimeError(f"the container is not ready:\n{self.log[-3000:]}")

    def generate(self, key: str, fields: dict[str, Any]) -> bytes:
        """Return the pixels of a picture."""
        from benchmarks.deploy.image import pixels_of

        status, body = self._request(
            "POST", "/v1/images/generations", fields, {"authorization": f"Bearer {key}"}
        )
        if status != 200:
            raise RuntimeError(body.decode())
        return pixels_of(json.loads(body)["data"][0]["b64_json"])

    def memory_mb(self) -> tuple[float, float]:
        """Resident megabytes of front and worker."""
        front, *workers = [*process.tree(self.front)]
        return tuple(  # type: ignore[return-value]
            round(sum(process.memory(pid)[0] for pid in pids) / 1e6, 1) for pids in ((front,), workers)
        )

    def healthy(self) -> bool:
        """Run the image's health check inside."""
        kind, *command = self._config["Healthcheck"]["Test"]
        return kind == "CMD" and self._inside(command) == 0

    def can_write(self, path: str) -> bool:
        return self._inside(["touch", path]) == 0

    def owners(self) -> set[int]:
        """Users of all its processes, as effective and real ids."""
        found = set()
        for pid in process.tree(self.front):
            status = Path(f"/proc/{pid}/status").read_text()
            found |= set(map(int, re.findall(r"^Uid:\s+(\d+)\s+(\d+)", status, re.MULTILINE)[0]))
        return found

    def is_process_1(self) -> bool:
        status = Path(f"/proc/{self.front}/status").read_text()
        return re.findall(r"^NSpid:.*\s1$", status, re.MULTILINE) != [] and "serve" in process.command_line(
            self.front
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _inside(self, command: list[str]) -> int:
        at = ["nsenter", "--target", str(self.front), "--mount", "--pid", f"--root=/proc/{self.front}/root"]
        user, group = self._config["User"].split(":")
        at += ["--setuid", user, "--setgid", group, "--", "/usr/bin/env", "-i", *self._environment]
        return subprocess.run([*at, *command], check=False, capture_output=True, timeout=30).returncode

    def _request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"content-type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()
