"""A process with NVIDIA's tritonclient, which takes commands as JSON lines; run by the Python that has it.

A line is an object of ``id``, ``op`` (``stream``, ``grpc``, ``http`` or ``ready``), ``fields`` (inputs) and, for a
stream, ``leave_after``: responses after which the client cancels. An answer has the same ``id``.
"""

from __future__ import annotations

import base64
import json
import queue
import sys
import threading
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

_TYPES = {
    "seed": ("INT64", np.int64),
    "num_inference_steps": ("INT32", np.int32),
    "width": ("INT32", np.int32),
    "height": ("INT32", np.int32),
    "n": ("INT32", np.int32),
    "guidance_scale": ("FP64", np.float64),
}
_SECONDS = 120


def inputs(module: Any, fields: dict[str, Any]) -> list[Any]:
    """Make inputs; images are in base64, other texts are sent as they are."""
    found = []
    for name, value in fields.items():
        kind, dtype = _TYPES.get(name, ("BYTES", np.object_))
        if kind == "BYTES":
            value = base64.b64decode(value) if name in ("image", "mask", "depth_map") else value.encode()
        tensor = module.InferInput(name, [1], kind)
        tensor.set_data_from_numpy(np.array([value], dtype))
        found.append(tensor)
    return found


def images_of(result: Any) -> dict[str, Any]:
    return {
        "images": [base64.b64encode(image).decode() for image in result.as_numpy("image")],
        "seeds": result.as_numpy("seed").tolist(),
        "facts": json.loads(result.as_numpy("facts")[0]),
    }


def stream(grpc: str, model: str, fields: dict[str, Any], leave_after: int | None) -> dict[str, Any]:
    """Send a request to a model that streams, and collect its responses until the last one."""
    arrived: queue.Queue[tuple[Any, Any]] = queue.Queue()
    answer: dict[str, Any] = {"steps": []}
    with tritonclient.grpc.InferenceServerClient(grpc) as client:
        client.start_stream(lambda result, error: arrived.put((result, error)))
        try:
            client.async_stream_infer(
                model, inputs(tritonclient.grpc, fields), enable_empty_final_response=True
            )
            while leave_after is None or len(answer["steps"]) < leave_after:
                result, error = arrived.get(timeout=_SECONDS)
                if error is not None:
                    return {**answer, "error": error.message(), "status": error.status()}
                if (step := result.as_numpy("step")) is not None:
                    answer["steps"].append([int(step[0]), int(result.as_numpy("steps")[0])])
                if result.as_numpy("image") is not None:
                    answer |= images_of(result)
                if result.get_response().parameters["triton_final_response"].bool_param:
                    return answer
            return {**answer, "left": True}
        finally:
            client.stop_stream(cancel_requests=True)


def serve(command: dict[str, Any], grpc: str, http: str) -> dict[str, Any]:
    model = command.get("model", "demo")
    match command["op"]:
        case "stream":
            return stream(grpc, model, command["fields"], command.get("leave_after"))
        case "grpc":
            with tritonclient.grpc.InferenceServerClient(grpc) as client:
                return images_of(client.infer(model, inputs(tritonclient.grpc, command["fields"])))
        case "http":
            with tritonclient.http.InferenceServerClient(http, network_timeout=_SECONDS) as client:
                return images_of(client.infer(model, inputs(tritonclient.http, command["fields"])))
        case "ready":
            with tritonclient.grpc.InferenceServerClient(grpc) as client:
                return {"server": client.is_server_ready(), "model": client.is_model_ready(model)}
        case other:
            raise ValueError(other)


def main() -> None:
    grpc, http = sys.argv[1:]
    writing = threading.Lock()

    def run(command: dict[str, Any]) -> None:
        try:
            answer = serve(command, grpc, http)
        except InferenceServerException as error:
            answer = {"error": error.message(), "status": error.status()}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}", "status": "client"}
        with writing:
            print(json.dumps({"id": command["id"], **answer}), flush=True)

    for line in sys.stdin:
        threading.Thread(target=run, args=(json.loads(line),), daemon=True).start()


if __name__ == "__main__":
    main()
