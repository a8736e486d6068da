"""Load a part's graph in OpenVINO, adapt it, and compile it for one size or for any."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.bundle.schema import ComputePrecision, Part
from sd2rt.engines.errors import engine_error
from sd2rt.engines.interface import Array
from sd2rt.engines.weights.initializers import replaced_initializers

if TYPE_CHECKING:
    import openvino

_SAMPLER_COEFFICIENTS = frozenset({"weights", "shares", "update"})
"""Inputs of the denoiser graph with the coefficients of the sampler's weighted sums."""


class OpenVinoGraph:
    """A part's graph, ready to be compiled. It is read immediately, so that errors are raised on opening.

    Args:
        core: OpenVINO's core; shared, and must outlive the graph.
        part: the manifest entry of the part.
        path: the ONNX file. Its weights are memory-mapped, and copied by each compilation.
        bundle: the bundle of the file, whose verified files are read even if it was replaced since; None to read the
            file wherever it is.
        threads: number of threads; None for one per core.
        precision: compute precision of matrix products; None for float32.
        weights: replacements of the bundle's weights, by PyTorch name, in PyTorch's orientation. They are kept for
            the second compilation, and must not change.

    Raises:
        EngineError: the file cannot be read as a model, or has no such weights.
        BundleError: ``weights`` is given, and the part's map of weights cannot be read.
    """

    def __init__(
        self,
        core: openvino.Core,
        part: Part,
        path: Path,
        *,
        bundle: Bundle | None = None,
        threads: int | None,
        precision: ComputePrecision | None,
        weights: Mapping[str, Array] | None = None,
    ) -> None:
        self.part, self.label = part, f"{Path(part.onnx).parent.name} on cpu"
        self._core, self._path, self._bundle = core, path, bundle
        self._threads, self._precision, self._weights = threads, precision, weights
        self._model: openvino.Model | None = self._read()

    def compiled(self, shapes: Mapping[str, tuple[int, ...]] | None) -> CompiledGraph | None:
        """Compile for inputs of these shapes, or for any shapes if None.

        Returns None if OpenVINO would compile these shapes incorrectly: compile for any shapes instead.

        The model is freed after compilation, since it would hold a second copy of replaced weights. A second
        compilation reads it again.

        Raises:
            RuntimeError: the graph cannot be compiled, or memory ran out.
            EngineError, BundleError: the file cannot be read again; see the class.
        """
        model, self._model = self._model or self._read(), None
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            # By default OpenVINO uses bfloat16 if the CPU supports it.
            "INFERENCE_PRECISION_HINT": "f32" if self._precision is None else self._precision,
        }
        if self._threads is not None:
            options["INFERENCE_NUM_THREADS"] = self._threads
        # Taken from the model, in its order: a compiled model may report other names.
        inputs = [port.get_any_name() for port in model.inputs]
        outputs = [port.get_any_name() for port in model.outputs[: len(self.part.outputs)]]
        if shapes is not None:
            model.reshape({name: list(shapes[name]) for name in inputs})
            if self._precision is not None and _attention_is_ambiguous(model):
                return None
        compiled = self._core.compile_model(model, "CPU", options)
        del model
        return CompiledGraph(compiled.create_infer_request(), inputs, outputs)

    def _read(self) -> openvino.Model:
        if self._bundle is None:
            return self._read_from(self._path)
        return self._bundle.load(self.part.files, lambda folder: self._read_from(folder / self.part.onnx))

    def _read_from(self, path: Path) -> openvino.Model:
        # Outside the try block, since it raises BundleError itself.
        replacements = (
            {}
            if self._weights is None
            else dict(replaced_initializers(self.label, self.part, path, self._weights, self._threads))
        )
        try:
            model = self._core.read_model(path)
            _replace_constants(model, replacements)
            if self._precision is not None:
                _keep_sums_exact(model)
        except RuntimeError as error:
            raise engine_error(f"{path} cannot be loaded by OpenVINO", error) from error
        return model


class CompiledGraph:
    """A compiled part with its single inference request; not thread-safe.

    All sessions share the request, because it keeps the memory of intermediate results, which for Stable Diffusion
    is gigabytes.
    """

    def __init__(self, request: openvino.InferRequest, inputs: list[str], outputs: list[str]) -> None:
        self._request, self._inputs, self._outputs = request, inputs, outputs
        self._bound: object = None

    def run(
        self,
        owner: object,
        tensor: Callable[[str], openvino.Tensor],
        changed: tuple[set[str], set[str]],
    ) -> None:
        """Run once.

        Args:
            owner: the session whose tensors are used. If it also ran last, only ``changed`` is bound again.
            tensor: returns the tensor of an input or output.
            changed: names of inputs and of outputs whose tensors change with every run.

        Raises:
            RuntimeError: OpenVINO failed.
        """
        bind = changed if self._bound is owner else (self._inputs, self._outputs)
        self._bound = None
        for index, name in enumerate(self._inputs):
            if name in bind[0]:
                self._request.set_input_tensor(index, tensor(name))
        for index, name in enumerate(self._outputs):
            if name in bind[1]:
                self._request.set_output_tensor(index, tensor(name))
        self._request.start_async(share_inputs=True)
        self._request.wait()
        self._bound = owner


def _replace_constants(model: openvino.Model, values: Mapping[str, Array]) -> None:
    from openvino import opset13 as ops

    if not values:
        return
    constants = {
        node.get_friendly_name(): node for node in model.get_ops() if node.get_type_name() == "Constant"
    }
    for name, value in values.items():
        if name not in constants:
            raise RuntimeError(f"the graph has no initialiser {name}")
        # ops.constant copies, so the caller need not keep the value.
        constants[name].output(0).replace(ops.constant(value).output(0))


def _attention_is_ambiguous(model: openvino.Model) -> bool:
    """Return whether an attention has as many queries as heads, which OpenVINO 2026.4 confuses.

    It fuses attention with the surrounding transpositions if all sizes are fixed. In bfloat16 the relative error is
    then about one half if the two are equal, such as 20 heads with 20 positions of a 256x320 image.
    """
    for node in model.get_ops():
        if node.get_type_name() == "ScaledDotProductAttention":
            *_, heads, queries, _ = node.get_input_shape(0)  # [B, heads, queries, D]
            if heads == queries:
                return True
    return False


def _keep_sums_exact(model: openvino.Model) -> None:
    """Keep the sampler's weighted sums and the phases of the time embedding in float32.

    With a bfloat16 hint OpenVINO rounds all operators, and its Python API cannot exclude one. But operators that lead
    to an output without a matrix product stay in float32. This therefore replaces the matrix products of sampler
    coefficients and latents by multiply and sum, and adds the network's inputs as outputs that are not read.
    Otherwise every step would round the state to eight bits, and timestep 981 to 980.
    """
    from openvino import opset13 as ops

    exact = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() in ("Sin", "Cos"):
            phase = node.input_value(0)
            exact[phase.get_node().get_friendly_name()] = phase
        if node.get_type_name() != "MatMul":
            continue
        left, right = node.input_value(0), node.input_value(1)
        source = left.get_node()
        while source.get_type_name() == "Unsqueeze":
            source = source.input_value(0).get_node()
        if source.get_friendly_name() not in _SAMPLER_COEFFICIENTS:
            continue
        products = ops.multiply(ops.unsqueeze(left, 3), ops.unsqueeze(right, 1))  # [B, m, k, n]
        total = ops.reduce_sum(products, 2, keep_dims=False).output(0)
        node.output(0).replace(total)
        if source.get_friendly_name() == "weights":
            exact[node.get_friendly_name()] = total
    model.add_outputs(list(exact.values()))
