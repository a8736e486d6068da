"""The checks around a build: of the graph's tensors before it, of the engine and its attention kernels after it."""

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
"""Where each attention must become a kernel made for it. The autoencoder's is one of one head, 512 wide, which
TensorRT for RTX builds of a product, a softmax and a product, and says nothing; the depth estimator is float32, for
which there is no such kernel."""


def needs_fused_attention(task: BuildTask) -> bool:
    """Whether each attention of the part must become a kernel made for it."""
    # No backend has dedicated kernels for attention in float32.
    return task.name in _FUSED_PARTS and task.part.precision == "fp16" and not task.options.allow_decomposed


def check_attention(task: BuildTask, attentions: int, fused: int) -> None:
    """Compare the kernels made for attention with the graph's attention operators.

    Raises:
        BuildError: some operators have none.
    """
    # Each profile has kernels of its own.
    wanted = attentions * len(task.profiles)
    if fused < wanted:
        raise BuildError(
            f"{task.name}: {task.options.backend} has no dedicated kernel for {wanted - fused} of {wanted} attention "
            "layers at these sizes: --allow-decomposed builds them of several kernels, slower"
        )


def check_network(network: Any, part: Part) -> None:
    """Compare names and types with the manifest's, before a build is begun.

    Raises:
        BuildError: they differ.
    """
    for tensors, count, get in (
        (part.inputs, network.num_inputs, network.get_input),
        (part.outputs, network.num_outputs, network.get_output),
    ):
        found = {get(i).name: dtype_name(get(i).dtype) for i in range(count)}
        expected = {tensor.name: tensor.dtype for tensor in tensors}
        if found != expected:
            raise BuildError(
                f"{part.onnx} has the tensors {found}, its manifest says {expected}: build the bundle again"
            )


def check_engine(report: LayerReport, task: BuildTask) -> None:
    """Compare what was built with what was asked for: names, types, shapes and the range of each profile.

    Raises:
        BuildError: they differ.
    """
    found = {tensor.name: tensor for tensor in report.tensors}
    expected = {tensor.name: tensor for tensor in (*task.part.inputs, *task.part.outputs)}
    if set(found) != set(expected):
        raise BuildError(
            f"{task.name}: the engine has the tensors {sorted(found)}, expected {sorted(expected)}"
        )
    for name, tensor in expected.items():
        made = found[name]
        if made.dtype != tensor.dtype:
            raise BuildError(f"{task.name}: the engine's {name} is {made.dtype}, expected {tensor.dtype}")
        ranges = [profile_shapes(tensor, profile) for profile in task.profiles]
        for axis, size in enumerate(made.shape):
            sizes = {shape[axis] for three in ranges for shape in three}
            if (size == -1) if len(sizes) == 1 and made.is_input else (size not in (-1, *sizes)):
                raise BuildError(f"{task.name}: the engine's {name} is {list(made.shape)}, expected {ranges}")
        if made.is_input and made.ranges and list(made.ranges) != ranges:
            raise BuildError(f"{task.name}: the engine's {name} takes {list(made.ranges)}, expected {ranges}")
