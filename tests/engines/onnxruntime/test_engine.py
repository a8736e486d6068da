from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd2rt.engines.backends import open_backend
from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.bundle.schema import Part
from sd2rt.engines.errors import EngineError, MissingDependencyError
from sd2rt.engines.interface import Device
from sd2rt.engines.onnxruntime import opening
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeEngine, OnnxRuntimeSession

from ..step_inputs import CARRY
from ..test_cpu_sessions import DIMS, fill


@pytest.fixture(scope="module")
def bundle(small_bundle: Path) -> tuple[Path, Manifest]:
    opened = open_bundle(small_bundle)
    return opened.path, opened.manifest


def engine(bundle: tuple[Path, Manifest], name: PartName, **options: Any) -> OnnxRuntimeEngine:
    path, manifest = bundle
    part = manifest.parts[name]
    return OnnxRuntimeEngine(part, path / part.onnxruntime, **{"threads": 1, **options})


@pytest.fixture(scope="module")
def denoiser(bundle: tuple[Path, Manifest]) -> Iterator[OnnxRuntimeEngine]:
    with engine(bundle, "denoiser") as opened:
        yield opened


def test_carry_copies_nothing(denoiser: OnnxRuntimeEngine) -> None:
    """Launches write to two arrays in turn."""
    session = denoiser.session(DIMS, CARRY)
    assert isinstance(session, OnnxRuntimeSession)
    fill(session)
    buffer: Any = session.buffers["state"]
    places = [array.__array_interface__["data"][0] for array in buffer.arrays]
    assert len(set(places)) == 2
    assert [value.data_ptr() for value in buffer.values] == places
    for _ in range(3):
        source, destination = buffer.arrays[buffer.phase], buffer.arrays[buffer.phase ^ 1]
        before = source.copy()
        session.launch()
        np.testing.assert_array_equal(source, before)
        np.testing.assert_array_equal(buffer.read(), destination)


def test_result_is_in_the_buffers_own_memory(denoiser: OnnxRuntimeEngine) -> None:
    session = denoiser.session(DIMS)
    fill(session)
    output: Any = session.buffers["state_out"]
    session.launch()
    assert output.values[0].data_ptr() == output.arrays[0].__array_interface__["data"][0]
    np.testing.assert_array_equal(output.values[0].numpy(), output.read())


@pytest.mark.parametrize(("threads", "given"), [(None, 0), (1, 1), (3, 3)])
def test_threads(bundle: tuple[Path, Manifest], threads: int | None, given: int) -> None:
    with engine(bundle, "text_encoder", threads=threads) as encoder:
        session = encoder._session
        assert session is not None
        assert session.get_session_options().intra_op_num_threads == given


@pytest.mark.parametrize(
    ("others", "spins"), [((0,), True), ((1,), True), ((2, 1), True), ((2, 2), False), ((9, 3), False)]
)
def test_threads_sleep_if_others_take_all_cores(
    bundle: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch, others: tuple[int, ...], spins: bool
) -> None:
    samples = iter(others)
    monkeypatch.setattr(opening, "running_elsewhere", lambda: next(samples))
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    with engine(bundle, "text_encoder", threads=2) as encoder:
        assert encoder._session is not None
        options = encoder._session.get_session_options()
        if spins:
            assert options.get_session_config_entry("session.intra_op.spin_duration_us") == "50"
            assert options.get_session_config_entry("session.intra_op.spin_backoff_max") == "64"
        else:
            assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.skipif(not Path("/proc/loadavg").exists(), reason="the system does not tell")
def test_busy_processes_are_counted() -> None:
    code = "print(flush=True)\nwhile True: pass"
    busy = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(3)]
    try:
        for process in busy:
            assert process.stdout is not None
            process.stdout.readline()
        # Threads of this process that begin to run between two readings are subtracted too.
        assert max(opening.running_elsewhere() for _ in range(20)) >= 3
    finally:
        for process in busy:
            process.kill()
            process.wait()


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
    # The message is only in the exception, and the next launch is not affected.
    assert capfd.readouterr() == ("", "")
    fill(session)
    session.launch()
    np.testing.assert_array_equal(session.buffers["state"].read(), expected)


def test_model_that_is_not_the_manifests(bundle: tuple[Path, Manifest]) -> None:
    path, manifest = bundle
    denoiser, decoder = manifest.parts["denoiser"], manifest.parts["decoder"]
    with (
        OnnxRuntimeEngine(denoiser, path / decoder.onnxruntime, threads=1) as wrong,
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
        OnnxRuntimeEngine(part, model, threads=1)
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
    # A session that is still referenced remains usable.
    session.launch()
    assert np.isfinite(session.buffers["hidden"].read()).all()


def test_cuda_where_there_is_none(small_bundle: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(
        MissingDependencyError, match=r"cuda:1 was requested.*pip install '\.\[cuda\]'"
    ) as caught:
        open_backend(open_bundle(small_bundle), Device("cuda:1"), needed=())
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("extra", ["cpu", "cuda"])
def test_no_onnx_runtime(small_bundle: Path, monkeypatch: pytest.MonkeyPatch, extra: str) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=rf"pip install '\.\[{extra}\]'"):
        open_backend(open_bundle(small_bundle), Device(extra), needed=()).open("decoder")
