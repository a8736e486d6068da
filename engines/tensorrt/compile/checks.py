"""Check the graph's tensors before a build, and the engine's tensors and attention kernels after it."""

from __future__ import annotations

from typing import Any

from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.schema import Part
from sd2rt.engines.errors import BuildError
from sd2rt.engines.tensorrt.compile.layer_report import LayerReport
from sd2rt.engines.tensorrt.compile.worker_protocol import BuildTask
from sd2rt.engines.tensorrt.packages import dtype_name
from sd2rt.engines.tensorrt.profile_shapes import profile_shapes

_FUSED_PARTS: tuple[PartName, ...] = ("text_encoder", "denoiser")
"""Parts whose attention operators must each become a dedicated kernel. The autoencoder has a single head of width
512, which TensorRT for RTX silently builds as matmul, softmax and matmul; the depth estimator is float32, for which
there are no dedicated kernels."""


def needs_fused_attention(task: BuildTask) -> bool:
    """True if each attention operator of the part must become a dedicated kernel."""
    # No backend has dedicated attention kernels for float32.
    half = task.part.precision == "fp16" and not task.part.attends_in_float32
    return task.name in _FUSED_PARTS and half and not task.options.allow_decomposed


def check_attention(task: BuildTask, attentions: int, fused: int) -> None:
    """Compare the number of dedicated attention kernels with the graph's attention operators.

    Raises:
        BuildError: some operators have no dedicated kernel.
    """
    # Each profile has its own kernels.
    expected = attentions * len(task.profiles)
    if fused < expected:
        raise BuildError(
            f"{task.name}: {task.options.backend} has no dedicated kernel for {expected - fused} of {expected} "
            "attention layers at these sizes: --allow-decomposed builds them from several slower kernels"
        )


def check_network(network: Any, part: Part) -> None:
    """Compare the tensors' names and types with the manifest, before a build.

    Raises:
        BuildError: they differ.
    """
    for tensors, count, get in (
        (part.inputs, network.num_inputs, network.get_input),
        (part.outputs, network.num_outputs, network.get_output),
    ):
        dtypes = {get(i).name: dtype_name(get(i).dtype) for i in range(count)}
        expected = {tensor.name: tensor.dtype for tensor in tensors}
        if dtypes != expected:
            raise BuildError(
                f"{part.onnx} has the tensors {dtypes}, its manifest says {expected}: build the bundle again"
            )


def check_engine(report: LayerReport, task: BuildTask) -> None:
    """Compare the built engine's tensors with the task: names, types, shapes and the range of each profile.

    Raises:
        BuildError: they differ.
    """
    built = {tensor.name: tensor for tensor in report.tensors}
    expected = {tensor.name: tensor for tensor in (*task.part.inputs, *task.part.outputs)}
    if set(built) != set(expected):
        raise BuildError(
            f"{task.name}: the engine has the tensors {sorted(built)}, expected {sorted(expected)}"
        )
    for name, tensor in expected.items():
        actual = built[name]
        if actual.dtype != tensor.dtype:
            raise BuildError(f"{task.name}: the engine's {name} is {actual.dtype}, expected {tensor.dtype}")
        ranges = [profile_shapes(tensor, profile) for profile in task.profiles]
        for axis, size in enumerate(actual.shape):
            sizes = {shape[axis] for shape_range in ranges for shape in shape_range}
            if (size == -1) if len(sizes) == 1 and actual.is_input else (size not in (-1, *sizes)):
                raise BuildError(
                    f"{task.name}: the engine's {name} is {list(actual.shape)}, expected {ranges}"
                )
        if actual.is_input and actual.ranges and list(actual.ranges) != ranges:
            raise BuildError(
                f"{task.name}: the engine's {name} takes {list(actual.ranges)}, expected {ranges}"
            )
