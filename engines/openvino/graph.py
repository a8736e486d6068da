"""A part's graph as OpenVINO has it: read, changed where it must be, and compiled for one size or for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd2rt.engines.bundle.schema import ComputePrecision, Part
from sd2rt.engines.errors import engine_error
from sd2rt.engines.interface import Array
from sd2rt.engines.weights.initializers import replaced_initializers

if TYPE_CHECKING:
    import openvino

_NUMBERS = frozenset({"weights", "shares", "update"})
"""Inputs of the denoiser that its sums are weighted by."""


class OpenVinoGraph:
    """What a part is compiled from. It is read at once, so that what is wrong with it is told when it is opened.

    Args:
        core: it is shared, and outlives this.
        part: the manifest's entry.
        path: the ONNX file. Its weights are mapped into memory, and copied by what is compiled.
        threads: None for one per core.
        precision: what to multiply matrices in; None for float32.
        weights: by PyTorch name, in PyTorch's orientation: what to put in the place of the bundle's own. They are
            kept until the second compilation is made, and must not change.

    Raises:
        EngineError: the file cannot be read as a model, or has no such weights.
        BundleError: there are weights to replace, and the part's map of them cannot be read.
    """

    def __init__(
        self,
        core: openvino.Core,
        part: Part,
        path: Path,
        *,
        threads: int | None,
        precision: ComputePrecision | None,
        weights: Mapping[str, Array] | None = None,
    ) -> None:
        self.part, self.label = part, f"{Path(part.onnx).parent.name} on cpu"
        self._core, self._path = core, path
        self._threads, self._precision, self._weights = threads, precision, weights
        self._model: openvino.Model | None = self._read()

    def compiled(self, shapes: Mapping[str, tuple[int, ...]] | None) -> CompiledGraph | None:
        """Compile it for inputs of these shapes, or for any where there are none.

        None where it would be wrong for these shapes alone: compile it for any.

        The model goes when it is compiled: it would hold replaced weights a second time.

        Raises:
            RuntimeError: it cannot be compiled, or there is no memory for it.
            EngineError, BundleError: it has to be read again for this; see the class.
        """
        model, self._model = self._model or self._read(), None
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            # Left to itself it takes bfloat16 where the CPU has it.
            "INFERENCE_PRECISION_HINT": "f32" if self._precision is None else self._precision,
        }
        if self._threads is not None:
            options["INFERENCE_NUM_THREADS"] = self._threads
        # They are numbered by the model; the names that a compiled one gives may be others.
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
        # Read before the graph is: its errors are the bundle's.
        replaced = (
            {}
            if self._weights is None
            else dict(replaced_initializers(self.label, self.part, self._path, self._weights, self._threads))
        )
        try:
            model = self._core.read_model(self._path)
            _replace_constants(model, replaced)
            if self._precision is not None:
                _keep_sums_exact(model)
        except RuntimeError as error:
            raise engine_error(f"{self._path} cannot be loaded by OpenVINO", error) from error
        return model


class CompiledGraph:
    """A compiled part with its one inference request; not for several threads at once.

    What it computes between input and output it keeps in memory for the next run, which at Stable Diffusion's size
    is gigabytes: so sessions share it.
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
            owner: whose memory it runs on; where that is the last run's, only what has changed is bound.
            tensor: the memory of an input or output.
            changed: the inputs and outputs whose memory is another one at every run.

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
            raise RuntimeError(f"it has no initialiser {name}")
        # A copy: the caller need not keep the value.
        constants[name].output(0).replace(ops.constant(value).output(0))


def _attention_is_ambiguous(model: openvino.Model) -> bool:
    """Whether an attention has as many queries as heads; they are exchanged then.

    OpenVINO 2026.4 fuses attention and the transpositions around it where all sizes are known, and in bfloat16 its
    result is wrong by half where these two are equal (20 heads see 20 places of a picture of 256x320).
    """
    for node in model.get_ops():
        if node.get_type_name() == "ScaledDotProductAttention":
            *_, heads, queries, _ = node.get_input_shape(0)  # [B, heads, queries, D]
            if heads == queries:
                return True
    return False


def _keep_sums_exact(model: openvino.Model) -> None:
    """Keep in float32 what surrounds the network: the sampler's sums, and the phases of the time embedding.

    OpenVINO rounds all that is computed to bfloat16 where it is told to, and has no way to except an operator
    that can be reached from Python. What leads to an output without a matrix product it leaves alone. So products
    of the sampler's few numbers with latents are spelled out, and what goes into the network is an output, too,
    that nobody reads. Else the state would be rounded to eight bits at every step, and a timestep of 981 to 980.
    """
    from openvino import opset13 as ops

    kept = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() in ("Sin", "Cos"):
            phase = node.input_value(0)
            kept[phase.get_node().get_friendly_name()] = phase
        if node.get_type_name() != "MatMul":
            continue
        left, right = node.input_value(0), node.input_value(1)
        source = left.get_node()
        while source.get_type_name() == "Unsqueeze":
            source = source.input_value(0).get_node()
        if source.get_friendly_name() not in _NUMBERS:
            continue
        products = ops.multiply(ops.unsqueeze(left, 3), ops.unsqueeze(right, 1))  # [B, m, k, n]
        total = ops.reduce_sum(products, 2, keep_dims=False).output(0)
        node.output(0).replace(total)
        if source.get_friendly_name() == "weights":
            kept[node.get_friendly_name()] = total
    model.add_outputs(list(kept.values()))
