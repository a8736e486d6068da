"""The log keeps the first of several errors, and the messages for a build's report."""

from __future__ import annotations

from typing import Any

import pytest

from sd2rt.engines.tensorrt.trt_log import open_log, shared_log

from ..simulated_gpu import SimulatedGpu
from ..simulated_tensorrt import Severity, make_tensorrt


def test_first_error_since_the_last_one_taken() -> None:
    log = open_log(make_tensorrt(SimulatedGpu()), record=False)
    assert log.take_error() == "no reason given"
    log.log(Severity.WARNING, "a warning")
    log.log(Severity.ERROR, "the first\n  error")
    for _ in range(20):
        log.log(Severity.INTERNAL_ERROR, "what follows from it")
    assert log.take_error() == "the first error"
    assert log.take_error() == "no reason given"
    assert (log.layer_lists, log.messages) == ([], [])


def test_long_errors_are_cut_unless_all_of_them_is_wanted() -> None:
    log = open_log(make_tensorrt(SimulatedGpu()), record=False)
    for length, expected in ((400, "a" * 400), (None, "a" * 1000)):
        log.log(Severity.ERROR, "a" * 1000)
        assert log.take_error(length) == expected


def test_a_builds_record() -> None:
    log = open_log(make_tensorrt(SimulatedGpu()), record=True)
    log.log(Severity.VERBOSE, "a detail")
    log.log(Severity.VERBOSE, "Layers:\nName: a")
    log.log(Severity.INFO, " built \n")
    log.log(Severity.ERROR, "failed")
    assert log.layer_lists == ["Layers:\nName: a"]
    assert log.messages == ["info: built", "error: failed"]
    assert log.take_error() == "failed"


def test_one_log_of_all_that_a_backend_runs() -> None:
    modules = [make_tensorrt(SimulatedGpu(), name) for name in ("tensorrt", "tensorrt_rtx")]
    logs = [shared_log(module) for module in (*modules, *modules)]
    assert logs[:2] == logs[2:]
    assert logs[0] is not logs[1]


def test_the_backend_itself_writes_to_it() -> None:
    """TensorRT for RTX: TensorRT's runtime does not start without a GPU."""
    module: Any = pytest.importorskip("tensorrt_rtx")
    log = shared_log(module)
    log.take_error()
    assert module.Runtime(log).deserialize_cuda_engine(b"no engine" * 100) is None
    assert "Serialization" in log.take_error()
