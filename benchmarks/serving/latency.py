"""One client through HTTP, and the same images by the Python API, taking turns."""

from __future__ import annotations

import base64
import io
import time
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.recording import report
from benchmarks.serving.server_process import Client, Server
from sd2rt.runtime import Pipeline

BOUND = 1.10
PROMPT = "a small red circle left of a large blue square on a white background"
_COMPRESS_LEVEL = 1


def latency(server: Server, bundle: Path, steps: int, pairs: int) -> dict[str, Any]:
    """Time pairs of equal images, HTTP and Python in turns, and their ratios.

    Raises:
        ValueError: the pictures differ.
    """
    client = Client(server)
    http_seconds, python_seconds, overhead = [], [], []
    with Pipeline.open(bundle, device="cpu") as pipeline:
        for index in range(pairs + 1):
            began = time.perf_counter()
            status, answer = client.generate({"prompt": PROMPT, "num_inference_steps": steps, "seed": index})
            through_http = time.perf_counter() - began
            if status != 200:
                raise ValueError(f"the server answered {status}: {answer}")
            began = time.perf_counter()
            image = pipeline(PROMPT, num_inference_steps=steps, seed=index).images[0]
            file = io.BytesIO()
            image.save(file, "PNG", compress_level=_COMPRESS_LEVEL)
            in_python = time.perf_counter() - began
            received = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
            if received.tobytes() != image.tobytes():
                raise ValueError(f"seed {index}: the pictures differ")
            if index:  # the first pair warms both
                http_seconds.append(through_http)
                python_seconds.append(in_python)
                overhead.append((through_http - in_python) * 1000)
    client.close()
    return {
        "steps": steps,
        "http_seconds": report.summary(http_seconds),
        "python_seconds": report.summary(python_seconds),
        "difference_ms": report.summary(overhead, 2),
        "ratio": _ratios(http_seconds, python_seconds),
        "bound": BOUND,
    }


def _ratios(first: list[float], second: list[float]) -> dict[str, float]:
    ratios = sorted(a / b for a, b in zip(first, second, strict=True))
    spread = {f"p{share}": round(ratios[(len(ratios) - 1) * share // 100], 4) for share in (10, 90)}
    return report.summary(ratios) | spread
