"""The denoiser as a bare ONNX Runtime session: options, placement, time and error."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu.quick.facts import carried_onnxruntime
from benchmarks.gpu.quick.ort_options import CUDA_ONLY, FORMS, OPTIONS, PLAIN, form_file
from benchmarks.gpu.quick.reference import Arrays, Reference
from benchmarks.gpu.quick.settings import QuickSettings
from benchmarks.gpu.stage import CannotRunError, Record
from benchmarks.gpu.timing import spread

_COMMON = {"device_id": "0", "use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}
_WARNING = 2
_MEMCPY = re.compile(r"(\d+) Memcpy nodes? (?:is|are) added")
_GRAPH_ID = "1"


class Denoiser:
    """A session of the bundle's denoiser with its inputs and outputs bound on the device."""

    def __init__(
        self,
        settings: QuickSettings,
        options: dict[str, str],
        *,
        graph: bool,
        form: str = PLAIN,
        profile: Path | None = None,
    ) -> None:
        ort = carried_onnxruntime(settings)
        self.reference = Reference.load(settings.content / "denoiser.npz")
        session_options = ort.SessionOptions()
        session_options.log_severity_level = _WARNING
        session_options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if profile is not None:
            session_options.enable_profiling = True
            session_options.profile_file_prefix = str(profile)
        providers: list[Any] = ["CPUExecutionProvider"]
        self._place = ("cpu", 0)
        if settings.device == "cuda":
            chosen = {**_COMMON, **options, "enable_cuda_graph": str(int(graph))}
            providers.insert(0, ("CUDAExecutionProvider", chosen))
            self._place = ("cuda", 0)
        part = settings.manifest["parts"]["denoiser"]
        # As the product does: the graph for CPUs has operators without a CUDA kernel.
        path = settings.bundle / part["onnx" if settings.device == "cuda" or form != PLAIN else "onnxruntime"]
        if form != PLAIN:
            path = path.with_name(form_file(form))
        began = time.perf_counter()
        with _captured_stderr() as log:
            self.session = ort.InferenceSession(path, session_options, providers=providers, enable_fallback=0)
        self.open_seconds = time.perf_counter() - began
        self.memcpy_nodes = sum(map(int, _MEMCPY.findall(log.text)))
        if settings.device == "cuda":
            _check_options(self.session.get_provider_options(), chosen)
        self._run_options = ort.RunOptions()
        if graph:
            self._run_options.add_run_config_entry("gpu_graph_id", _GRAPH_ID)
        self._bind(ort)

    def _bind(self, ort: Any) -> None:
        self._binding = self.session.io_binding()
        self._values = {}
        for name, array in self.reference.inputs.items():
            self._values[name] = ort.OrtValue.ortvalue_from_numpy(array, *self._place)
            self._binding.bind_ortvalue_input(name, self._values[name])
        for name, array in self.reference.outputs.items():
            # Poisoned: an output that is not written is an error.
            poison = array * float("nan") if array.dtype.kind == "f" else array
            self._values[name] = ort.OrtValue.ortvalue_from_numpy(poison, *self._place)
            self._binding.bind_ortvalue_output(name, self._values[name])

    def run(self) -> None:
        """One launch; returns once the device has finished."""
        self.session.run_with_iobinding(self._binding, self._run_options)

    def outputs(self) -> Arrays:
        return {name: self._values[name].numpy() for name in self.reference.outputs}

    def placement(self) -> Record:
        """Nodes by provider, operators on the CPU, and copies between the two."""
        by_provider: Counter[str] = Counter()
        on_cpu: Counter[str] = Counter()
        for group in self.session.get_provider_graph_assignment_info():
            nodes = group.get_nodes()
            by_provider[group.ep_name] += len(nodes)
            if group.ep_name == "CPUExecutionProvider":
                on_cpu.update(node.op_type for node in nodes)
        return {
            "nodes": dict(by_provider),
            "on_cpu": dict(on_cpu.most_common(12)) if self._place[0] == "cuda" else None,
            "memcpy_nodes": self.memcpy_nodes,
        }


def compare(settings: QuickSettings, name: str, form: str = PLAIN) -> Iterator[Record]:
    """The options without a CUDA graph, then with one."""
    if settings.device == "cpu" and set(FORMS[form]) & set(CUDA_ONLY):
        raise CannotRunError("only the CUDA provider has the form's operators, and this is a dry run")
    for graph in (False, True) if settings.device == "cuda" else (False,):
        label = {"options": name, "form": form, "graph": graph}
        try:
            denoiser = Denoiser(settings, OPTIONS[name], graph=graph, form=form)
            began = time.perf_counter()
            denoiser.run()
            first = time.perf_counter() - began
        except Exception as error:
            # With a graph this may be all that fails.
            yield {**label, "refused": " ".join(str(error).split())[:400]}
            continue
        yield {
            **label,
            "open_s": round(denoiser.open_seconds, 2),
            "first_run_s": round(first, 2),
            **denoiser.reference.errors(denoiser.outputs()),
            **denoiser.placement(),
        }
        yield {**label, "ms": spread(round_ms(settings, denoiser)), **_replayed(denoiser)}
        del denoiser


def round_ms(settings: QuickSettings, denoiser: Denoiser) -> Iterator[float]:
    """Milliseconds of a launch, once for each round."""
    for _ in range(3):
        denoiser.run()
    for _ in range(settings.rounds):
        began = time.perf_counter()
        for _ in range(settings.steps):
            denoiser.run()
        yield (time.perf_counter() - began) / settings.steps * 1e3


def _replayed(denoiser: Denoiser) -> Record:
    """The error after many launches: a replayed graph must still compute the same."""
    return {"relative_error_after": denoiser.reference.errors(denoiser.outputs())["relative_error"]}


def _check_options(options: dict[str, dict[str, str]], chosen: dict[str, str]) -> None:
    """Raise where the CUDA provider did not start; log options that it reports otherwise than they were set."""
    reported = options.get("CUDAExecutionProvider")
    if reported is None:
        raise RuntimeError("the CUDA provider did not start")
    wrong = {key: reported.get(key) for key, value in chosen.items() if reported.get(key) != value}
    if wrong:
        print(f"options reported otherwise than set: {wrong}", file=sys.stderr)


class _Log:
    text = ""


@contextmanager
def _captured_stderr() -> Iterator[_Log]:
    """Catch what a C++ library writes to standard error, and write it there afterwards."""
    log, saved = _Log(), os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield log
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            log.text = file.read().decode(errors="replace")
            sys.stderr.write(log.text)
            sys.stderr.flush()
