"""The model that Triton's Python backend runs: requests go to a worker process, which another Python runs.

Runs in the Python of Triton's backend, from the copy of these modules that ``sd2rt triton`` writes into a model
repository; it needs NumPy and no other package.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import threading
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from sd2rt.engines.errors import Sd2rtError
from sd2rt.runtime.server.errors import ErrorCode, ServerError
from sd2rt.runtime.server.generation import Completed
from sd2rt.runtime.server.logs import set_up_logs
from sd2rt.runtime.server.worker_settings import WorkerSettings
from sd2rt.runtime.triton.tensors import INPUTS, TritonRequest, request_of, tensors_of
from sd2rt.runtime.triton.worker_thread import WorkerThread

_LOG = logging.getLogger(__name__)
SETTINGS = "settings.json"
"""File beside ``model.py``."""
PYTHON_VARIABLE = "SD2RT_PYTHON"
_FLAGS = ("-E", "-P")
"""The worker has its own packages, whatever PYTHONPATH says to Triton's Python: another NumPy makes other pixels."""
_LOOK_SECONDS = 0.05
"""Time between looks at requests that wait: Triton tells nobody that a client has left."""
_PARENT_SECONDS = 0.5
_CLOSE_SECONDS = 20.0


class TritonPythonModel:
    """A bundle; each request's responses come from the thread of the worker client."""

    def initialize(self, args: dict[str, str]) -> None:
        """Start the worker, and wait until it is ready.

        Raises:
            TritonModelException: the worker cannot start.
        """
        folder = Path(args["model_repository"]) / args["model_version"]
        config = json.loads(args["model_config"])
        self._streams: bool = config.get("model_transaction_policy", {}).get("decoupled", False)
        try:
            found = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            settings = WorkerSettings.from_json(found["worker"])
            # A bundle that was copied into the repository has a relative path.
            (self._name,) = settings.bundles
            settings.bundles[self._name] = str(folder / settings.bundles[self._name])
            python = os.environ.get(PYTHON_VARIABLE) or found["python"]
            set_up_logs(settings.log_format, settings.log_level, "triton")
            _check_version(python, found["sd2rt"])
            self._max_steps = settings.max_steps
            self._worker = WorkerThread(settings, (python, *_FLAGS, "-m", "sd2rt.runtime.server.worker"))
            self._worker.start()
            threading.Thread(target=_end_with, args=(os.getppid(),), name="sd2rt-parent", daemon=True).start()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise pb_utils.TritonModelException(f"{folder / SETTINGS} cannot be used: {error!r}") from None
        except Sd2rtError as error:
            raise pb_utils.TritonModelException(str(error)) from None

    def execute(self, requests: list[Any]) -> None:
        """Take requests; their responses are sent later."""
        for request in requests:
            answer = _Answer(request.get_response_sender())
            try:
                tensors = {
                    name: tensor.as_numpy()
                    for name in INPUTS
                    if (tensor := pb_utils.get_input_tensor_by_name(request, name)) is not None
                }
            except Exception as error:
                answer.fail(ServerError("invalid_value", f"a tensor cannot be read: {error}"))
                continue
            self._worker.submit(self._respond(tensors, answer))

    def finalize(self) -> None:
        """End the worker, after open requests."""
        self._worker.close(_CLOSE_SECONDS)

    async def _respond(self, tensors: dict[str, Any], answer: _Answer) -> None:
        """Send a request's responses; whatever is wrong with it ends in an error response."""
        try:
            # A client that failed knows no models; its successor does.
            model = self._worker.client.models.get(self._name)
            if model is None:
                raise ServerError("worker_down", "the worker is restarting: try again")
            request = request_of(tensors, model, max_steps=self._max_steps, every_step=self._streams)
            sending = asyncio.create_task(self._send_events(request, answer))
            while not (await asyncio.wait((sending,), timeout=_LOOK_SECONDS))[0]:
                if answer.cancelled():
                    sending.cancel()
            await sending
        except asyncio.CancelledError:
            answer.fail(None)
        except ServerError as error:
            answer.fail(error)
        except Exception as error:
            _LOG.error("a request failed", exc_info=error)
            answer.fail(ServerError("internal_error", "the request failed: the server's log has the reason"))

    async def _send_events(self, request: TritonRequest, answer: _Answer) -> None:
        async with aclosing(self._worker.client.generate(request.generation)) as events:
            async for event in events:
                tensors = tensors_of(event, encoded=request.encoded)
                last = isinstance(event, Completed)
                if last or (tensors and self._streams):
                    answer.send(tensors, last=last)


class _Answer:
    """The responses to one request."""

    def __init__(self, sender: Any) -> None:
        self._sender = sender
        self._ended = False

    def cancelled(self) -> bool:
        """Return whether the client has given up the request."""
        # After the last response the server no longer has the request, and 2.51 dies of the question.
        return not self._ended and bool(self._sender.is_cancelled())

    def send(self, tensors: dict[str, Any], *, last: bool) -> None:
        outputs = [pb_utils.Tensor(name, value) for name, value in tensors.items()]
        self._put(pb_utils.InferenceResponse(outputs), last)

    def fail(self, error: ServerError | None) -> None:
        """Send an error as the last response; nothing but the end for a request that its client gave up."""
        if self._ended:
            return
        try:
            if error is None:
                self._ended = True
                self._sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            else:
                failure = pb_utils.TritonError(f"{error.code}: {error.message}", _triton_code(error.code))
                self._put(pb_utils.InferenceResponse(error=failure), True)
        except Exception as lost:
            _LOG.warning("a response could not be sent: %s", lost)

    def _put(self, response: Any, last: bool) -> None:
        self._ended = last
        self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)


def _triton_code(code: ErrorCode) -> Any:
    kinds = pb_utils.TritonError
    if code in ("not_supported", "task_not_supported"):
        return kinds.UNSUPPORTED
    status = ServerError(code, "").answer.status
    if status in (429, 503, 504):
        return kinds.UNAVAILABLE
    return kinds.INTERNAL if status >= 500 else kinds.INVALID_ARG


def _end_with(parent: int) -> None:
    """End this process, and with it the worker, when the server has died.

    The backend sees that itself only while it waits for requests, not while a response waits for the server.
    """
    while os.getppid() == parent:
        time.sleep(_PARENT_SECONDS)
    os._exit(1)


def _check_version(python: str, version: str) -> None:
    """Check that the worker's sd2rt is the one whose modules were copied here.

    Raises:
        Sd2rtError: it is another, or the Python has none.
    """
    code = "from importlib.metadata import version; print(version('sd2rt'))"
    try:
        done = subprocess.run(
            [python, *_FLAGS, "-c", code], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Sd2rtError(
            f"{python} cannot be run ({error}): set {PYTHON_VARIABLE} to a Python that has sd2rt"
        ) from None
    if (found := done.stdout.strip()) != version:
        raise Sd2rtError(
            f"{python} has sd2rt {found or 'not installed'}, and this repository was written by {version}: "
            f"write it again with 'sd2rt triton', or set {PYTHON_VARIABLE}"
        )
