"""The OpenVINO backend: selection, refusals, and batches of mixed requests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.errors import MissingDependencyError, RequestError
from sd2rt.engines.openvino.backend import OpenVinoBackend, shared_core
from sd2rt.runtime import Pipeline, Request


def test_a_cpu_without_bfloat16(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OldCore:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr("sd2rt.engines.openvino.backend.shared_core", OldCore)
    with pytest.raises(RequestError, match=r"no bfloat16 instructions .*: omit --precision"):
        OpenVinoBackend(open_bundle(small_bundle), threads=1, precision="bf16")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backend": "openvino", "device": "cuda"}, "openvino runs on CPUs only: use --device cpu"),
        ({"precision": "bf16", "device": "cuda"}, "--precision bf16 runs on CPUs only"),
        ({"precision": "bf16-decoder", "device": "cuda"}, "--precision bf16-decoder runs on CPUs only"),
        ({"precision": "bf16-decoder", "backend": "tensorrt"}, "tensorrt needs an NVIDIA GPU"),
        ({"precision": "bf16", "backend": "onnxruntime"}, "--precision bf16 needs --backend openvino"),
    ],
)
def test_what_does_not_go_together(small_bundle: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Pipeline.open(small_bundle, **options)


@pytest.mark.skipif(
    "BF16" not in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="this CPU has no bfloat16 instructions",
)
def test_only_the_decoder_in_bfloat16(small_bundle: Path) -> None:
    """Latents are those of float32; every way to decode them is in bfloat16, in tiles too."""
    options: dict[str, Any] = {"seed": 1, "num_inference_steps": 2}
    with (
        Pipeline.open(small_bundle, precision="bf16-decoder", tile=32) as pipeline,
        Pipeline.open(small_bundle, tile=32) as reference,
    ):
        assert pipeline.backend == reference.backend == "onnxruntime"
        assert pipeline.precision == "fp32, decoder in bf16"
        for width in (64, 320):
            options["width"] = width
            latents = [
                p("a red circle", output_type="latent", **options).images for p in (pipeline, reference)
            ]
            np.testing.assert_array_equal(*latents)
            ours, theirs = (
                p("a red circle", output_type="np", **options).images for p in (pipeline, reference)
            )
            assert 0 < abs(ours - theirs).max() < 0.1


def test_not_installed(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"pip install '\.\[openvino\]'"):
        Pipeline.open(small_bundle, backend="openvino")


def test_requests_that_share_a_batch(small_bundle: Path) -> None:
    """Requests start and end at different steps: one engine runs batches of several sizes, guided and unguided."""
    options: list[dict[str, Any]] = [
        {"prompt": "snow", "seed": 1, "sampler": "euler", "num_inference_steps": 6},
        {"prompt": "rain", "seed": 2, "sampler": "dpmpp-2m", "num_inference_steps": 3, "guidance_scale": 4.0},
        {"prompt": "fog", "seed": 3, "sampler": "ddim", "num_inference_steps": 4, "guidance_scale": 1.0},
    ]
    requests = [Request(output_type="np", **values) for values in options]
    with Pipeline.open(small_bundle, backend="openvino", threads=1) as pipeline:
        assert pipeline.backend == "openvino"
        together = pipeline.generate(requests)
        with Pipeline.open(small_bundle, threads=1) as reference:
            for request, output in zip(requests, together, strict=True):
                alone = reference.generate([request])[0]
                assert np.abs(np.asarray(output.images) - np.asarray(alone.images)).max() <= 2 / 255


def test_a_signal_after_another_thread_has_closed(small_bundle: Path) -> None:
    """The stack for signal handlers, which OpenVINO gives the thread that compiles, is not freed by others."""
    code = f"""
import faulthandler, gc, os, signal, threading
faulthandler.disable()
from pathlib import Path
from sd2rt import Pipeline

signal.signal(signal.SIGTERM, lambda *arguments: print("handled"))
pipes = [Pipeline.open(Path({str(small_bundle)!r}), backend="openvino", threads=1)]
pipes[0]("a", num_inference_steps=1)

def close():
    pipes.pop().close()
    gc.collect()

thread = threading.Thread(target=close)
thread.start()
thread.join()
os.kill(os.getpid(), signal.SIGTERM)
"""
    child = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (child.returncode, child.stdout) == (0, "handled\n"), child.stderr
