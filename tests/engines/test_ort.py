from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sd2rt.engines.bundle import open_bundle
from sd2rt.engines.errors import EngineError, MissingDependencyError
from sd2rt.engines.kinds import PartName
from sd2rt.engines.manifest import Manifest, Part
from sd2rt.engines.ort import OnnxRuntimeEngine, OnnxRuntimeSession
from sd2rt.engines.session import Device, Session

CPU = Device("cpu")
CARRY = {"state_out": "state"}
DIMS = {"B": 1, "R": 2, "P": 1, "L": 77, "h": 8, "w": 8}


@pytest.fixture(scope="module")
def bundle(small_bundle: Path) -> tuple[Path, Manifest]:
    opened = open_bundle(small_bundle)
    return opened.path, opened.manifest


def engine(bundle: tuple[Path, Manifest], name: PartName, **options: Any) -> OnnxRuntimeEngine:
    path, manifest = bundle
    part = manifest.parts[name]
    return OnnxRuntimeEngine(part, path / part.onnxruntime, CPU, **{"threads": 1, **options})


@pytest.fixture(scope="module")
def denoiser(bundle: tuple[Path, Manifest]) -> Iterator[OnnxRuntimeEngine]:
    with engine(bundle, "denoiser") as opened:
        yield opened


def fill(session: Session, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Write inputs of a step that remembers: every slot of the new state depends on the old ones."""
    random = np.random.default_rng(seed)
    values = {
        name: random.standard_normal(session.buffers[name].shape).astype(np.float32)
        for name in ("state", "noise", "text")
    }
    values |= {
        "timestep": np.array([500], np.float32),
        "weights": np.array([[1, 0.5, 0, 0, 0]], np.float32),
        "guidance": np.array([[2, 0.5]], np.float32),
        "update": 0.3 * random.standard_normal((1, 5, 7)).astype(np.float32),
        "row": np.array([0, 0]),
        "uncond": np.array([0]),
        "cond": np.array([[1]]),
        "shares": np.ones((1, 1), np.float32),
    }
    for name, value in values.items():
        session.buffers[name].write(value)
    return values


def test_session_is_made_once_for_its_sizes(denoiser: OnnxRuntimeEngine) -> None:
    first = denoiser.session(DIMS, CARRY)
    assert denoiser.session(dict(reversed(DIMS.items())), dict(CARRY)) is first
    assert denoiser.session(DIMS) is not first
    assert denoiser.session({**DIMS, "w": 16}, CARRY) is not first


def test_least_recently_used_session_is_dropped(bundle: tuple[Path, Manifest]) -> None:
    with engine(bundle, "text_encoder") as encoder:
        first, second = encoder.session({"B": 1}), encoder.session({"B": 2})
        for size in range(3, 17):
            encoder.session({"B": size})
        assert encoder.session({"B": 1}) is first
        encoder.session({"B": 17})
        assert encoder.session({"B": 1}) is first
        assert encoder.session({"B": 2}) is not second


def test_buffers_have_the_manifests_shapes(denoiser: OnnxRuntimeEngine) -> None:
    session = denoiser.session({**DIMS, "h": 16})
    shapes = {name: (buffer.shape, str(buffer.dtype)) for name, buffer in session.buffers.items()}
    assert shapes["state"] == shapes["state_out"] == ((1, 5, 4, 16, 8), "float32")
    assert shapes["text"] == ((2, 77, 32), "float32")
    assert shapes["row"] == ((2,), "int64")
    assert shapes["finite"] == ((1,), "uint8")
    assert "state_out" not in denoiser.session(DIMS, CARRY).buffers


def test_what_is_written_is_read_back_as_a_copy(denoiser: OnnxRuntimeEngine) -> None:
    buffer = denoiser.session(DIMS, CARRY).buffers["state"]
    value = np.random.default_rng(0).standard_normal(buffer.shape).astype(np.float32)
    buffer.write(value)
    read = buffer.read()
    np.testing.assert_array_equal(read, value)
    read[:] = 0
    np.testing.assert_array_equal(buffer.read(), value)


@pytest.mark.parametrize("shape", [(), (1,), (5, 4, 8, 8), (2, 5, 4, 8, 8)])
def test_array_of_another_shape_is_refused(denoiser: OnnxRuntimeEngine, shape: tuple[int, ...]) -> None:
    """NumPy would repeat the smaller ones over the buffer."""
    buffer = denoiser.session(DIMS, CARRY).buffers["state"]
    with pytest.raises(ValueError, match="was written to a buffer of"):
        buffer.write(np.zeros(shape, np.float32))


def test_carried_output_is_the_next_input(denoiser: OnnxRuntimeEngine) -> None:
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


def test_carried_input_can_be_written_between_launches(denoiser: OnnxRuntimeEngine) -> None:
    session = denoiser.session(DIMS, CARRY)
    values = fill(session)
    session.launch()
    expected = session.buffers["state"].read()
    for _ in range(2):
        session.buffers["state"].write(values["state"])
        session.launch()
        np.testing.assert_array_equal(session.buffers["state"].read(), expected)


def test_carry_copies_nothing(denoiser: OnnxRuntimeEngine) -> None:
    """Two pieces of memory change places: the launches write to one and the other in turn."""
    session = denoiser.session(DIMS, CARRY)
    assert isinstance(session, OnnxRuntimeSession)
    fill(session)
    buffer: Any = session.buffers["state"]
    places = [array.__array_interface__["data"][0] for array in buffer._arrays]
    assert len(set(places)) == 2
    assert [value.data_ptr() for value in buffer.values] == places
    for _ in range(3):
        source, destination = buffer._arrays[buffer.phase], buffer._arrays[buffer.phase ^ 1]
        before = source.copy()
        session.launch()
        np.testing.assert_array_equal(source, before)
        np.testing.assert_array_equal(buffer.read(), destination)


def test_result_is_in_the_buffers_own_memory(denoiser: OnnxRuntimeEngine) -> None:
    session = denoiser.session(DIMS)
    fill(session)
    output: Any = session.buffers["state_out"]
    session.launch()
    assert output.values[0].data_ptr() == output._arrays[0].__array_interface__["data"][0]
    np.testing.assert_array_equal(output.values[0].numpy(), output.read())


def test_sessions_of_one_engine_do_not_disturb_each_other(denoiser: OnnxRuntimeEngine) -> None:
    first, second = denoiser.session(DIMS, CARRY), denoiser.session({**DIMS, "w": 16}, CARRY)
    values = fill(first)
    first.launch()
    alone = first.buffers["state"].read()
    first.buffers["state"].write(values["state"])
    fill(second, seed=1)
    second.launch()
    first.launch()
    np.testing.assert_array_equal(first.buffers["state"].read(), alone)


def test_state_that_is_not_finite_is_told(denoiser: OnnxRuntimeEngine) -> None:
    session = denoiser.session(DIMS, CARRY)
    values = fill(session)
    for bad in (np.nan, np.inf):
        state = values["state"].copy()
        state[0, 0, 0, 0, 0] = bad
        session.buffers["state"].write(state)
        session.launch()
        np.testing.assert_array_equal(session.buffers["finite"].read(), [0])


@pytest.mark.parametrize(("threads", "given"), [(None, 0), (1, 1), (3, 3)])
def test_threads(bundle: tuple[Path, Manifest], threads: int | None, given: int) -> None:
    with engine(bundle, "text_encoder", threads=threads) as encoder:
        session = encoder._session
        assert session is not None
        assert session.get_session_options().intra_op_num_threads == given


@pytest.mark.parametrize(("name", "index"), [("row", 99), ("row", -99), ("cond", 2), ("uncond", 1 << 40)])
def test_index_out_of_range(
    denoiser: OnnxRuntimeEngine, name: str, index: int, capfd: pytest.CaptureFixture[str]
) -> None:
    session = denoiser.session(DIMS, CARRY)
    values = fill(session)
    session.launch()
    expected = session.buffers["state"].read()
    fill(session)
    session.buffers[name].write(np.full_like(values[name], index))
    with pytest.raises(EngineError, match=r"^denoiser at \{.*\} on cpu failed: .*out of") as caught:
        session.launch()
    assert "\n" not in str(caught.value)
    # What it says is in the exception, and nowhere else; the next launch knows nothing of it.
    assert capfd.readouterr() == ("", "")
    fill(session)
    session.launch()
    np.testing.assert_array_equal(session.buffers["state"].read(), expected)


def test_size_without_memory(denoiser: OnnxRuntimeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(shape: tuple[int, ...], dtype: str) -> None:
        raise MemoryError(f"Unable to allocate 12 TiB for an array with shape {shape}")

    monkeypatch.setattr("sd2rt.engines.ort.np.zeros", no_memory)
    with pytest.raises(EngineError, match=r"out of memory .*: ask for a smaller --size or batch"):
        denoiser.session({**DIMS, "h": 1 << 20, "w": 1 << 20})


def test_size_that_is_not_given(denoiser: OnnxRuntimeEngine) -> None:
    with pytest.raises(EngineError, match="state has the dimension 'w', and sizes are given for"):
        denoiser.session({"B": 1, "R": 1, "L": 77, "h": 8})


def test_model_that_is_not_the_manifests(bundle: tuple[Path, Manifest]) -> None:
    path, manifest = bundle
    denoiser, decoder = manifest.parts["denoiser"], manifest.parts["decoder"]
    with (
        OnnxRuntimeEngine(denoiser, path / decoder.onnxruntime, CPU, threads=1) as wrong,
        pytest.raises(EngineError, match=r"denoiser at .* cannot be prepared"),
    ):
        wrong.session(DIMS)


@pytest.mark.parametrize("damage", ["missing", "garbage", "empty", "cut", "weights missing", "weights cut"])
def test_model_that_cannot_be_loaded(
    bundle: tuple[Path, Manifest], tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    source, manifest = bundle
    part: Part = manifest.parts["decoder"]
    for file in part.files:
        copy = tmp_path / Path(file.path).name
        copy.write_bytes((source / file.path).read_bytes())
    model = tmp_path / Path(part.onnxruntime).name
    weights = max(tmp_path.iterdir(), key=lambda path: path.stat().st_size)
    if damage == "missing":
        model.unlink()
    elif damage == "garbage":
        model.write_bytes(b"garbage" * 100)
    elif damage == "empty":
        model.write_bytes(b"")
    elif damage == "cut":
        model.write_bytes(model.read_bytes()[:1000])
    elif damage == "weights missing":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(EngineError) as caught:
        OnnxRuntimeEngine(part, model, CPU, threads=1)
    assert str(caught.value).startswith(f"{model} cannot be loaded on cpu: ")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 5
    assert capfd.readouterr() == ("", "")


def test_closed_engine(bundle: tuple[Path, Manifest]) -> None:
    with engine(bundle, "text_encoder") as encoder:
        session = encoder.session({"B": 1})
    encoder.close()
    with pytest.raises(EngineError, match="text_encoder on cpu is closed: open it again"):
        encoder.session({"B": 1})
    # Who still holds a session can still use it.
    session.launch()
    assert np.isfinite(session.buffers["hidden"].read()).all()


def test_cuda_where_there_is_none(bundle: tuple[Path, Manifest]) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    path, manifest = bundle
    part = manifest.parts["decoder"]
    with pytest.raises(
        MissingDependencyError, match=r"cuda:1 was asked for.*pip install 'sd2rt\[cuda\]'"
    ) as caught:
        OnnxRuntimeEngine(part, path / part.onnxruntime, Device("cuda:1"))
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(("device", "extra"), [("cpu", "cpu"), ("cuda", "cuda")])
def test_no_onnx_runtime(
    bundle: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch, device: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    path, manifest = bundle
    part = manifest.parts["decoder"]
    with pytest.raises(MissingDependencyError, match=rf"pip install 'sd2rt\[{extra}\]'"):
        OnnxRuntimeEngine(part, path / part.onnxruntime, Device(device))
