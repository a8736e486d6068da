"""Headers of TensorRT for RTX engines, read by the real package without a GPU and by the simulated one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from sd2rt.engines.tensorrt.engine_header import MASK_BITS, HeaderReader
from sd2rt.engines.tensorrt.trt_log import open_log

from ..simulated_gpu import SimulatedGpu
from ..simulated_tensorrt import make_tensorrt
from .engine_bench import Bench


@pytest.mark.parametrize("driver", [True, False])
@pytest.mark.parametrize(
    ("capability", "mask", "runs"),
    [
        ((9, 0), 0x7E, False),
        ((8, 9), 0x7E, True),
        ((8, 9), 0x10, False),
        ((12, 0), 0x10, True),
        ((7, 5), 0x7E, False),
    ],
)
def test_engine_runs_on_what_its_mask_names(
    bench: Bench, capability: tuple[int, int], mask: int, runs: bool, driver: bool
) -> None:
    """With a driver and without one."""
    module = make_tensorrt(gpu := bench.gpu, "tensorrt_rtx")
    gpu.capability, gpu.driver = capability, driver
    entry = bench.build(module=module, backend="tensorrt-rtx", plan={"mask": mask})
    reader = HeaderReader(module, ".".join(map(str, capability)))
    said = None if runs else f"it has no code for this GPU, which is sm_{capability[0]}{capability[1]}"
    assert reader.mismatch_of(bench.path(entry)) == said


def test_file_that_is_no_engine(tmp_path: Path) -> None:
    reader = HeaderReader(make_tensorrt(SimulatedGpu(), "tensorrt_rtx"), "8.9")
    path = tmp_path / "engine"
    # Loading reports the missing file.
    assert reader.mismatch_of(path) is None
    path.write_bytes(b"garbage" * 30)
    assert reader.mismatch_of(path) == "malformed engine"
    path.write_bytes(b"")
    assert reader.mismatch_of(path) == "malformed engine"


def built(trt: Any, targets: tuple[str, ...]) -> bytes:
    """An engine of one layer."""
    log = open_log(trt, record=False)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    values = network.add_input("x", trt.float32, (1, 8))
    layer = network.add_activation(values, trt.ActivationType.RELU)
    network.mark_output(layer.get_output(0))
    config = builder.create_builder_config()
    if targets:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target), index)
    return bytes(builder.build_serialized_network(network, config))


@pytest.mark.parametrize(
    ("targets", "runs"), [((), {"8.0", "8.6", "8.9", "12.0", "12.1"}), (("SM89",), {"8.9"})]
)
def test_masks_are_where_they_are_read(tmp_path: Path, targets: tuple[str, ...], runs: set[str]) -> None:
    """Checked with real engines; without a driver the package calls all of them invalid."""
    trt = pytest.importorskip("tensorrt_rtx")
    path = tmp_path / "engine"
    path.write_bytes(built(trt, targets))
    found = {item for item in (*MASK_BITS, "9.0") if HeaderReader(trt, item)._in_mask(path.read_bytes())}
    assert found == runs
    if shutil.which("nvidia-smi") is None:
        assert "sm_90" in str(HeaderReader(trt, "9.0").mismatch_of(path))
        assert HeaderReader(trt, "8.9").mismatch_of(path) is None
