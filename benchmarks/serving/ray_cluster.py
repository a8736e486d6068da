"""Ray on this machine with applications of Ray Serve, for benchmarks and tests."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from benchmarks.recording import process
from sd2rt.runtime.ray.serve import build_app

STORE_BYTES = 80 * 1024**2
_REPLICA = "ray::ServeReplica:"
_WORKER = "sd2rt.runtime.server.worker"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of an application."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """Code of an error; None if the answer is none of sd2rt's errors."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return str(self.json["error"]["code"])
        return None


class RayCluster:
    """Ray with its HTTP proxy on a free port of this machine; a context manager that ends both.

    Environment variables of this process are those of the replicas.

    Args:
        num_cpus: that replicas may reserve.
    """

    def __init__(self, num_cpus: int = 2) -> None:
        (self.port,) = process.free_ports(1)
        self._num_cpus = num_cpus

    def __enter__(self) -> Self:
        # Nothing is reported to Ray's makers. Its processes inherit it.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray
        from ray import serve

        ray.init(
            num_cpus=self._num_cpus,
            object_store_memory=STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": self.port})
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray
        from ray import serve

        try:
            serve.shutdown()  # type: ignore[no-untyped-call]
        finally:
            ray.shutdown()

    def deploy(self, name: str, prefix: str = "/", **settings: Any) -> None:
        """Deploy an application, and wait until it is ready.

        Raises:
            RequestError: a setting is invalid.
            RuntimeError: the deployment failed.
        """
        from ray import serve

        serve.run(build_app(settings), name=name, route_prefix=prefix)

    def delete(self, name: str) -> None:
        """Delete an application, and wait until its replicas have ended."""
        from ray import serve

        serve.delete(name)

    def connect(self, timeout: float = 60) -> http.client.HTTPConnection:
        """Return a connection to the proxy."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(
        self, path: str, body: Any = None, headers: Mapping[str, str] | None = None, timeout: float = 60
    ) -> Answer:
        """Send a request on a connection of its own: a POST if it has a body.

        Raises:
            OSError, http.client.HTTPException: there is no answer.
        """
        connection = self.connect(timeout)
        try:
            send_request(connection, path, body, headers)
            answer = connection.getresponse()
            return Answer(
                answer.status, answer.read(), {key.lower(): value for key, value in answer.getheaders()}
            )
        finally:
            connection.close()

    def replicas(self, name: str) -> dict[int, list[int]]:
        """Return the workers' processes by the process of their replica, of those that are alive."""
        found: dict[int, list[int]] = {}
        for pid in process.tree(os.getpid()):
            if process.command_line(pid).startswith(f"{_REPLICA}{name}:"):
                found[pid] = [child for child in process.tree(pid) if _WORKER in process.command_line(child)]
        return found


def send_request(
    connection: http.client.HTTPConnection,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Send a request: a POST of JSON if it has a body."""
    if body is None:
        connection.request("GET", path, headers=dict(headers or {}))
    else:
        connection.request(
            "POST", path, json.dumps(body), {"Content-Type": "application/json", **(headers or {})}
        )


def events(response: http.client.HTTPResponse) -> Iterator[str]:
    """Yield the lines of a stream as they arrive, without empty ones."""
    while line := response.readline():
        if text := line.decode().strip():
            yield text
