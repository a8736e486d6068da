"""The session contract on the CPU, for every backend that runs there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray

from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.errors import EngineError
from sd2rt.engines.interface import Engine, Session
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeEngine
from sd2rt.engines.openvino.engine import OpenVinoEngine
from sd2rt.engines.openvino.graph import OpenVinoGraph

from .step_inputs import CARRY, step_inputs

DIMS = {"B": 1, "R": 2, "P": 1, "L": 77, "h": 8, "w": 8}
Open = Callable[[PartName], Engine]


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def opener(request: pytest.FixtureRequest, small_bundle: Path) -> Open:
    bundle = open_bundle(small_bundle)
    core = openvino.Core()

    def opened(name: PartName) -> Engine:
        part = bundle.part(name)
        if request.param == "openvino":
            graph = OpenVinoGraph(core, part, bundle.file(part.onnx), threads=1, precision=None)
            return OpenVinoEngine(graph)
        return OnnxRuntimeEngine(part, bundle.file(part.onnxruntime), threads=1)

    return opened


@pytest.fixture(scope="module")
def denoiser(opener: Open) -> Iterator[Engine]:
    with opener("denoiser") as engine:
        yield engine


def fill(session: Session, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Write the inputs of a step."""
    values = step_inputs(session, seed) | {"timestep": np.array([500], np.float32)}
    for name, value in values.items():
        session.buffers[name].write(value)
    return values


def test_session_is_made_once_for_its_sizes(denoiser: Engine) -> None:
    first = denoiser.session(DIMS, CARRY)
    assert denoiser.session(dict(reversed(DIMS.items())), dict(CARRY)) is first
    assert denoiser.session(DIMS) is not first
    assert denoiser.session({**DIMS, "w": 16}, CARRY) is not first


def test_least_recently_used_session_is_dropped(opener: Open) -> None:
    with opener("text_encoder") as encoder:
        first, second = encoder.session({"B": 1}), encoder.session({"B": 2})
        for size in range(3, 17):
            encoder.session({"B": size})
        assert encoder.session({"B": 1}) is first
        encoder.session({"B": 17})
        assert encoder.session({"B": 1}) is first
        assert encoder.session({"B": 2}) is not second


def test_buffers_have_the_manifests_shapes(denoiser: Engine) -> None:
    session = denoiser.session({**DIMS, "h": 16})
    shapes = {name: (buffer.shape, str(buffer.dtype)) for name, buffer in session.buffers.items()}
    assert shapes["state"] == shapes["state_out"] == ((1, 5, 4, 16, 8), "float32")
    assert shapes["text"] == ((2, 77, 32), "float32")
    assert shapes["row"] == ((2,), "int64")
    assert shapes["finite"] == ((1,), "uint8")
    assert "state_out" not in denoiser.session(DIMS, CARRY).buffers


def test_what_is_written_is_read_back_as_a_copy(denoiser: Engine) -> None:
    buffer = denoiser.session(DIMS, CARRY).buffers["state"]
    value = np.random.default_rng(0).standard_normal(buffer.shape).astype(np.float32)
    buffer.write(value)
    read = buffer.read()
    np.testing.assert_array_equal(read, value)
    read[:] = 0
    np.testing.assert_array_equal(buffer.read(), value)


@pytest.mark.parametrize("shape", [(), (1,), (5, 4, 8, 8), (2, 5, 4, 8, 8)])
def test_array_of_another_shape_is_refused(denoiser: Engine, shape: tuple[int, ...]) -> None:
    """NumPy would broadcast smaller arrays over the buffer."""
    buffer = denoiser.session(DIMS, CARRY).buffers["state"]
    with pytest.raises(ValueError, match="was written to a buffer of"):
        buffer.write(np.zeros(shape, np.float32))


def test_carried_output_is_the_next_input(denoiser: Engine) -> None:
    carried, plain = denoiser.session(DIMS, CARRY), denoiser.session(DIMS)
    fill(carried)
    fill(plain)
    for _ in range(3):
        carried.launch()
        plain.launch()
        state = plain.buffers["state_out"].read()
        assert np.isfinite(state).all()
        np.testing.assert_array_equal(carried.buffers["state"].read(), state)
        np.testing.assert_array_equal(carried.buffers["finite"].read(), [1])
        plain.buffers["state"].write(state)


def test_carried_input_can_be_written_between_launches(denoiser: Engine) -> None:
    session = denoiser.session(DIMS, CARRY)
    values = fill(session)
    session.launch()
    expected = session.buffers["state"].read()
    for _ in range(2):
        session.buffers["state"].write(values["state"])
        session.launch()
        np.testing.assert_array_equal(session.buffers["state"].read(), expected)


def test_sessions_of_one_engine_do_not_disturb_each_other(denoiser: Engine) -> None:
    first, second = denoiser.session(DIMS, CARRY), denoiser.session({**DIMS, "w": 16}, CARRY)
    values = fill(first)
    first.launch()
    alone = first.buffers["state"].read()
    first.buffers["state"].write(values["state"])
    fill(second, seed=1)
    second.launch()
    first.launch()
    np.testing.assert_array_equal(first.buffers["state"].read(), alone)


def test_state_that_is_not_finite_is_told(denoiser: Engine) -> None:
    session = denoiser.session(DIMS, CARRY)
    values = fill(session)
    for bad in (np.nan, np.inf):
        state = values["state"].copy()
        state[0, 0, 0, 0, 0] = bad
        session.buffers["state"].write(state)
        session.launch()
        np.testing.assert_array_equal(session.buffers["finite"].read(), [0])


def test_size_without_memory(denoiser: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(shape: tuple[int, ...], dtype: str) -> None:
        raise MemoryError(f"Unable to allocate 12 TiB for an array with shape {shape}")

    monkeypatch.setattr("sd2rt.engines.host_buffers.np.zeros", no_memory)
    with pytest.raises(EngineError, match=r"out of memory .*: ask for a smaller --size or batch"):
        denoiser.session({**DIMS, "h": 1 << 20, "w": 1 << 20})


def test_size_that_is_not_given(denoiser: Engine) -> None:
    with pytest.raises(EngineError, match="state has the dimension 'w', but there are sizes for"):
        denoiser.session({"B": 1, "R": 1, "L": 77, "h": 8})
