"""Ray itself: imported when it is needed, started or connected to, with its report of use switched off."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from sd2rt.engines.errors import EngineError, MissingDependencyError
from sd2rt.engines.install_hint import install_hint
from sd2rt.engines.printable import shown

_USAGE = "RAY_USAGE_STATS_ENABLED"
_LOGS = "RAY_BACKEND_LOG_LEVEL"
"""Lines of Ray's own on standard error; what ends a job is raised."""
_CHOICE = "~/.ray/config.json"
"""File in which Ray keeps what the user answered."""
_LOCAL: dict[str, Any] = {
    "include_dashboard": False,
    # It holds rows and names of files: images go from actors to files.
    "object_store_memory": 80 * 1024**2,
    "_node_ip_address": "127.0.0.1",
}
"""Options of a session on this machine alone."""


def import_ray() -> Any:
    """Import Ray with its datasets.

    Raises:
        MissingDependencyError: the extra ``ray`` is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependencyError(
            f"Ray Data needs {error.name}, which is not installed: {install_hint('ray')}"
        ) from None
    return ray


@contextmanager
def ray_session(address: str | None = None) -> Iterator[Any]:
    """Yield Ray, connected: the process's own session if it has one, else one that ends with the block.

    Args:
        address: of a cluster, such as ``auto``; None for processes on this machine, which end with this one.

    Raises:
        MissingDependencyError: the extra ``ray`` is not installed.
        EngineError: there is no cluster at the address, or Ray cannot be started.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    # Ray Data tells of its bars and of each dataset that has ended.
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    local = {} if address is not None else _LOCAL
    try:
        with ExitStack() as stack:
            stack.enter_context(_own_handler())
            stack.enter_context(_default(_USAGE, "0", not os.path.exists(os.path.expanduser(_CHOICE))))
            stack.enter_context(_default(_LOGS, "fatal"))
            ray.init(
                address="local" if address is None else address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **local,
            )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        place = "on this machine" if address is None else f"at {shown(address)}"
        reason = " ".join(str(error).split())
        raise EngineError(f"Ray cannot be started {place} ({shown(reason)}): check the address") from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _own_handler() -> Iterator[None]:
    """Keep the handler of SIGTERM: Ray's prints a trace and exits with another code, and cleans nothing up."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _default(name: str, value: str, wanted: bool = True) -> Iterator[None]:
    """Set an environment variable for the processes that are started in the block, unless the user has."""
    if name in os.environ or not wanted:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
