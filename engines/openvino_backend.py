"""The OpenVINO backend: a bundle's ONNX on x86-64 CPUs, in the bundle's precision or in bfloat16."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sd2rt.engines.bundle import Bundle
from sd2rt.engines.errors import EngineError, MissingDependencyError, RequestError, engine_error
from sd2rt.engines.host_buffer import HostBuffer, WaitedSession
from sd2rt.engines.kinds import PartName
from sd2rt.engines.manifest import Part
from sd2rt.engines.session import Array, Closing, ComputePrecision, Engine, Session, Sessions, shape_of
from sd2rt.engines.weights import replaced_initializers

if TYPE_CHECKING:
    import openvino

_NOTHING: Mapping[str, str] = MappingProxyType({})
_NUMBERS = frozenset({"weights", "shares", "update"})
"""Inputs of the denoiser that its sums are weighted by."""


class OpenVinoBackend:
    """OpenVINO on the CPU, from the graphs that every bundle has.

    Args:
        threads: None for one per core.
        precision: ``bf16`` to multiply in bfloat16; None for float32.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
        RequestError: the CPU has no instructions for the precision.
    """

    name = "openvino"
    max_batch: int | None = None

    def __init__(self, bundle: Bundle, *, threads: int | None, precision: ComputePrecision | None) -> None:
        try:
            import openvino
        except ImportError:
            raise MissingDependencyError("OpenVINO is not installed: pip install 'sd2rt[openvino]'") from None
        # A bundle in fp16 is widened where it is compiled.
        self.precision: str = "fp32" if precision is None else precision
        self._bundle, self._threads, self._precision = bundle, threads, precision
        self._core = openvino.Core()
        able = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and "BF16" not in able:
            raise RequestError(
                "this CPU has no bfloat16 instructions (avx512_bf16, amx_bf16): leave --precision out"
            )

    def open(
        self, part: PartName, weights: Mapping[str, Array] | None = None, like: Engine | None = None
    ) -> Engine:
        """See :class:`sd2rt.engines.backends.Backend`."""
        entry = self._bundle.part(part)
        return OpenVinoEngine(
            self._core,
            entry,
            self._bundle.file(entry.onnx),
            threads=self._threads,
            precision=self._precision,
            weights=weights,
        )

    def close(self) -> None:
        return


class OpenVinoEngine(Closing):
    """A part compiled by OpenVINO for any size of its symbols.

    All sessions take turns in one inference request: what it computes between input and output it keeps in memory
    for the next run, which at Stable Diffusion's size is gigabytes.

    Args:
        core: it is shared, and outlives this.
        path: the ONNX file.
        precision: see :class:`OpenVinoBackend`.
        weights: by PyTorch name, in PyTorch's orientation: what to put in the place of the bundle's own.

    Raises:
        EngineError: the model cannot be compiled, or has no such weights.
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
        self.part = part
        self._label = f"{Path(part.onnx).parent.name} on cpu"
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            # Left to itself it takes bfloat16 where the CPU has it.
            "INFERENCE_PRECISION_HINT": "f32" if precision is None else precision,
        }
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        # Read before anything is compiled: its errors are the bundle's.
        replaced = (
            {} if weights is None else dict(replaced_initializers(self._label, part, path, weights, threads))
        )
        try:
            model = core.read_model(path)
            _replace_constants(model, replaced)
            if precision is not None:
                _keep_sums_exact(model)
            # They are numbered by the model; the names that a compiled one gives may be others.
            self._inputs = [port.get_any_name() for port in model.inputs]
            self._outputs = [port.get_any_name() for port in model.outputs]
            compiled = core.compile_model(model, "CPU", options)
            self._request: openvino.InferRequest | None = compiled.create_infer_request()
        except RuntimeError as error:
            raise engine_error(f"{path} cannot be loaded by OpenVINO", error) from error
        self._lock = threading.Lock()
        self._bound: OpenVinoSession | None = None
        self._sessions = Sessions[OpenVinoSession]()

    def session(
        self, dims: Mapping[str, int], carry: Mapping[str, str] = _NOTHING, watch: str | None = None
    ) -> Session:
        """The session for these sizes, made on first use; the least recently used is dropped after 16.

        Raises:
            EngineError: there is no memory for its buffers, or the engine is closed.
        """
        if self._request is None:
            raise EngineError(f"{self._label} is closed: open it again")
        return self._sessions.get(functools.partial(OpenVinoSession, self), dims, carry, watch)

    def infer(self, session: OpenVinoSession) -> None:
        """Run once on a session's buffers.

        Raises:
            EngineError: OpenVINO failed, or the engine is closed.
        """
        with self._lock:
            request = self._request
            if request is None:
                raise EngineError(f"{self._label} is closed: open it again")
            try:
                changed = session.changed if self._bound is session else (self._inputs, self._outputs)
                self._bound = None
                for index, name in enumerate(self._inputs):
                    if name in changed[0]:
                        request.set_input_tensor(index, session.tensor(name))
                for index, name in enumerate(self._outputs):
                    if name in changed[1]:
                        request.set_output_tensor(index, session.tensor(name))
                request.start_async(share_inputs=True)
                request.wait()
                self._bound = session
            except RuntimeError as error:
                raise engine_error(f"{session.label} failed", error) from error

    def close(self) -> None:
        """Free the engine and its sessions."""
        with self._lock:
            self._sessions.clear()
            self._request = self._bound = None


class OpenVinoSession(WaitedSession):
    """NumPy arrays that OpenVINO reads and writes in place; a carried output and its input change places."""

    def __init__(
        self, engine: OpenVinoEngine, dims: Mapping[str, int], carry: Mapping[str, str], watch: str | None
    ) -> None:
        import openvino

        part = engine.part
        self.label = f"{Path(part.onnx).parent.name} at {dict(dims)} on cpu"
        self._engine, self._carry = engine, dict(carry)
        twins = set(carry.values())
        try:
            buffers = {
                tensor.name: HostBuffer(
                    shape_of(tensor, dims), tensor.dtype, 2 if tensor.name in twins else 1
                )
                for tensor in (*part.inputs, *part.outputs)
                if tensor.name not in carry
            }
        except (ValueError, MemoryError) as error:
            raise engine_error(f"{self.label} cannot be prepared", error) from error
        self._tensors = {
            name: [openvino.Tensor(array, shared_memory=True) for array in buffer.arrays]
            for name, buffer in buffers.items()
        }
        super().__init__(buffers, carry, watch)
        self.changed = (twins, set(carry))
        """Inputs and outputs whose memory is another one at every launch."""

    def tensor(self, name: str) -> openvino.Tensor:
        """The memory of an input, or of an output, at the next launch."""
        if name in self._carry:
            return self._tensors[self._carry[name]][self._phase ^ 1]
        tensors = self._tensors[name]
        return tensors[self._phase % len(tensors)]

    def launch(self) -> None:
        """Run once; see :class:`sd2rt.engines.session.Session`."""
        self._engine.infer(self)
        self._launched()


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


def _keep_sums_exact(model: openvino.Model) -> None:
    """Spell out the products of the sampler's few numbers with latents: they stay in float32.

    OpenVINO multiplies matrices in bfloat16 where it is told to, whatever they are, and has no way to except one
    that can be reached from Python. Sums of products that lie between the network and the output it leaves alone.
    The state would otherwise be rounded to eight bits at every step.
    """
    from openvino import opset13 as ops

    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        left, right = node.input_value(0), node.input_value(1)
        source = left.get_node()
        while source.get_type_name() == "Unsqueeze":
            source = source.input_value(0).get_node()
        if source.get_friendly_name() not in _NUMBERS:
            continue
        products = ops.multiply(ops.unsqueeze(left, 3), ops.unsqueeze(right, 1))  # [B, m, k, n]
        node.output(0).replace(ops.reduce_sum(products, 2, keep_dims=False).output(0))
