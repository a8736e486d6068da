"""CUDA libraries are loaded once, from any number of threads, and a missing one is a one-line error."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from sd2rt.engines.errors import MissingDependencyError
from sd2rt.engines.interface import Device
from sd2rt.engines.onnxruntime.cuda_libraries import _REQUIRED
from sd2rt.engines.onnxruntime.opening import import_onnxruntime

from .simulated_cuda import SimulatedCuda


def test_several_threads_load_them_once_and_leave_standard_output_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = SimulatedCuda()
    cuda.install(monkeypatch)
    before = sys.stdout
    with ThreadPoolExecutor(3) as pool:
        seen = list(pool.map(lambda _: (import_onnxruntime(Device("cuda")), sys.stdout)[1], range(3)))
    assert seen == [before] * 3
    assert sys.stdout is before
    assert cuda.counts["preload"] == 1
    assert cuda.loaded == list(_REQUIRED)


@pytest.mark.parametrize("name", ["libcublas.so.13", "libcudnn.so.9", "libcudart.so.13"])
def test_a_library_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    cuda = SimulatedCuda(missing=(name,))
    cuda.install(monkeypatch)
    for _ in range(2):
        with pytest.raises(
            MissingDependencyError, match=rf"needs {name} \(.*\): pip install '\.\[cuda\]'"
        ) as caught:
            import_onnxruntime(Device("cuda"))
        assert "\n" not in str(caught.value)
    assert cuda.counts["preload"] == 0
    assert capfd.readouterr() == ("", "")
    # After the library has been installed, the same process can load it.
    cuda.missing = ()
    import_onnxruntime(Device("cuda"))
    assert cuda.counts["preload"] == 1


@pytest.mark.parametrize("version", ["1.24.4", "1.30.0", "0.9"])
def test_a_package_that_is_too_old(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    SimulatedCuda(version=version).install(monkeypatch)
    with pytest.raises(
        MissingDependencyError, match=rf"\({version}\) is too old for CUDA, 1\.31 or later .*'\.\[cuda\]'"
    ):
        import_onnxruntime(Device("cuda"))


def test_a_package_for_another_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    SimulatedCuda(cuda_version="12.8").install(monkeypatch)
    with pytest.raises(MissingDependencyError, match=r"was built for CUDA 12\.8, expected CUDA 13"):
        import_onnxruntime(Device("cuda"))
