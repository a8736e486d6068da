"""Random command lines, manifests and Python calls: each works, or is refused in one line with its exit code.

Command lines run in this process, one in fifty in a process of its own; engines of equal parts are loaded once.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, cast
from unittest.mock import patch

from benchmarks.faults.command_lines import command_line
from benchmarks.faults.mutations import mutated_manifest, odd_value
from benchmarks.faults.recorder import Outcome, Recorder
from benchmarks.recording.bundle import build_demo

CASES = 6000
_LIMIT_SECONDS = 120
_PROCESS_EVERY = 50
_CODES = (0, 2, 3, 4, 5, 6)
_MISSING = 6
"""Exit code of a `sd2rt doctor` that has shown what is missing."""
_IMAGES = (b"\x89PNG", b"\xff\xd8", b"RIFF")
Judged = tuple[Outcome, str]


class _TimeOutError(BaseException):
    pass


def run(recorder: Recorder, cases: int, seed: int) -> None:
    """Run seven command lines in ten cases, two manifests and one Python call in ten."""
    with tempfile.TemporaryDirectory(prefix="sd2rt-fuzz-") as name, _kept_engines():
        scratch = Path(name)
        os.environ["SD2RT_CACHE_DIR"] = str(scratch / "cache")
        bundle = build_demo(scratch)
        shutil.copytree(bundle, scratch / "cache" / "bundles" / "demo")
        folder = scratch / "here"
        for index in range(cases):
            random = Random(f"{seed}/{index}")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            os.chdir(folder)
            group, outcome, case, detail = _case(index, random, bundle, folder)
            recorder.record(group, outcome, f"{index}: {case}", detail)
            os.chdir(scratch)


def _case(index: int, random: Random, bundle: Path, folder: Path) -> tuple[str, Outcome, str, str]:
    kind = index % 10
    if kind < 7:
        words = command_line(random, bundle, folder)
        own = index % _PROCESS_EVERY == 0
        outcome, detail = _in_a_process(words) if own else _within_limit(lambda: _in_this_process(words))
        return ("processes" if own else "command lines"), outcome, " ".join(map(repr, words))[:1000], detail
    if kind < 9:
        content, changes = mutated_manifest(json.loads((bundle / "bundle.json").read_text()), random)
        return "manifests", *_swap(changes, _within_limit(lambda: _manifest(content, bundle, folder)))
    arguments = {name: odd_value(random) for name in random.sample(_ARGUMENTS, random.choice((1, 1, 2)))}
    call = random.choice([*_CALLS])
    text = f"{call} {', '.join(f'{name}={_repr(value)}' for name, value in arguments.items())}"
    return "Python calls", *_swap(text, _within_limit(lambda: _python(call, arguments, bundle)))


def _swap(case: str, judged: Judged) -> tuple[Outcome, str, str]:
    return judged[0], case, judged[1]


def _within_limit(call: Callable[[], Judged]) -> Judged:
    def stop(number: int, frame: object) -> None:
        raise _TimeOutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_LIMIT_SECONDS)
    try:
        return call()
    except _TimeOutError:
        return "hang", f"more than {_LIMIT_SECONDS} s"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _in_this_process(words: list[str]) -> Judged:
    from sd2rt.runtime.cli.main import main

    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace") for _ in range(2)]
    nothing = io.TextIOWrapper(io.BytesIO(b"a prompt\n"), "utf-8")
    with patch.multiple(sys, stdin=nothing, stdout=streams[0], stderr=streams[1]):
        try:
            code: Any = main(words)
        except SystemExit as stop:
            code = stop.code
        except Exception as error:
            return "exit 1", f"{type(error).__name__}: {error}"[:300]
        for stream in streams:
            stream.flush()
    out, err = (_text_of(stream.buffer.getvalue()) for stream in streams)
    return judge(code, out, err, words)


def _text_of(printed: bytes) -> str:
    """Decode lines; nothing for the image of ``--output -``."""
    return "" if printed.startswith(_IMAGES) else printed.decode(errors="replace")


def _in_a_process(words: list[str]) -> Judged:
    if not all("\0" not in word and "\ud800" not in word for word in words):
        return "held", "no process can have these arguments"
    command = [sys.executable, "-P", "-m", "sd2rt", *words]
    options: dict[str, Any] = {"input": b"a prompt\n", "capture_output": True, "timeout": _LIMIT_SECONDS}
    try:
        child = subprocess.run(command, check=False, **options)
    except subprocess.TimeoutExpired:
        return "hang", f"more than {_LIMIT_SECONDS} s"
    out, err = map(_text_of, (child.stdout, child.stderr))
    return judge(child.returncode, out, err, words)


def judge(code: object, out: str, err: str, words: Sequence[str] = ()) -> Judged:
    """Judge a command by its exit code, its lines, and the characters in them.

    A path that the caller chose is printed exactly where standard output is no terminal: a script reads it.
    """
    lines = [line for line in err.split("\n") if line]
    # Notes and warnings may come before an error, and a build prints its stages.
    errors = [
        line
        for line in lines
        if line.startswith("sd2rt: ") and not line[7:].startswith(("warning: ", "note: ", "building the "))
    ]
    chosen = {c for word in words for c in word}
    unprintable = {c for c in out + err if not c.isprintable() and c != "\n"} - (chosen - {*err})
    if code not in _CODES or "Traceback" in err or "a bug, " in err:
        return "exit 1", f"exit {code}: {err[-300:]}"
    if unprintable:
        return "wrong", f"unprintable {sorted(map(ascii, unprintable))}: {err[:200]!r}"
    if out.startswith("Usage: ") and not err:
        # Help, also in answer to no arguments at all.
        return "held", f"exit {code}: help"
    if len(errors) != (code != 0) and not (code == _MISSING and words[:1] == ["doctor"]):
        return "wrong", f"exit {code} with {len(errors)} lines of error: {err[:300]!r}"
    return "held", f"exit {code}: {errors[0][:200] if errors else ''}"


def _manifest(content: Any, bundle: Path, folder: Path) -> Judged:
    from sd2rt.engines.errors import BundleError, RequestError
    from sd2rt.runtime.pipeline.pipeline import Pipeline

    copy = Path(shutil.copytree(bundle, folder / "bundle", copy_function=os.link))
    (copy / "bundle.json").unlink()
    (copy / "bundle.json").write_text(json.dumps(content))
    with _quiet() as seen:
        try:
            with Pipeline.open(copy, threads=1) as pipe:
                tasks = pipe.manifest.tasks
                with pipe.stream("a", width=64, height=64, seed=1) as running:
                    next(iter(running))
        except BundleError as error:
            return _one_line(error)
        except RequestError as error:
            if "text-to-image" not in tasks:
                return _one_line(error)
            return "exit 1", f"RequestError: {error}"[:300]
        except Exception as error:
            return "exit 1", f"{type(error).__name__}: {error}"[:300]
    return ("wrong", f"warned: {seen[0].message}"[:300]) if seen else ("held", "a step was drawn")


_ARGUMENTS = [
    *("prompt", "negative_prompt", "image", "mask_image", "depth_map", "strength", "noise_level", "paste"),
    *("paste_blur", "prompt_syntax", "clip_skip", "guidance_scale", "guidance_rescale", "guidance_interval"),
    *("preset", "height", "width", "seed", "rng", "variation_seed", "variation_strength", "latents"),
    *(
        "prompt_embeds",
        "negative_prompt_embeds",
        "sampler",
        "schedule",
        "sampler_options",
        "eta",
        "timesteps",
    ),
    *("rescale_betas_zero_snr", "sigmas", "output_type", "max_image_pixels", "unknown"),
]


def _call(pipe: Any, arguments: dict[str, Any]) -> None:
    pipe(**{"prompt": "a", "num_inference_steps": 1, "width": 64, "height": 64, **arguments})


def _opening(bundle: Path, arguments: dict[str, Any]) -> None:
    from sd2rt.runtime.pipeline.pipeline import Pipeline

    names = ("bundle", "device", "threads", "max_batch", "tile", "backend", "precision", "cuda_graph")
    odd = dict(
        zip(Random(repr(sorted(arguments))).sample(names, len(arguments)), arguments.values(), strict=True)
    )
    Pipeline.open(**{"bundle": str(bundle), "threads": 1, **odd}).close()


_CALLS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "pipe": _call,
    "open": lambda pipe, arguments: _opening(pipe.bundle.path, arguments),
    "callback": lambda pipe, arguments: _call(
        pipe, {"callback_on_step_end": lambda *state: _first(arguments)}
    ),
    "latents": lambda pipe, arguments: _call(
        pipe, {"callback_on_step_end": lambda *state: {"latents": _first(arguments)}}
    ),
    "load_embedding": lambda pipe, arguments: pipe.load_embedding(_first(arguments)),
    "token": lambda pipe, arguments: pipe.load_embedding({"x": [[0.0]]}, _first(arguments)),
    "load_lora": lambda pipe, arguments: pipe.load_lora(_first(arguments)),
    "scale": lambda pipe, arguments: pipe.load_lora("x.safetensors", _first(arguments)),
    "upscale": lambda pipe, arguments: pipe.upscale(_first(arguments)),
}


def _first(arguments: dict[str, Any]) -> Any:
    return next(iter(arguments.values()))


def _python(call: str, arguments: dict[str, Any], bundle: Path) -> Judged:
    from sd2rt.engines.errors import Sd2rtError
    from sd2rt.runtime.pipeline.pipeline import Pipeline

    with _quiet() as seen, Pipeline.open(bundle, threads=1) as pipe:
        try:
            _CALLS[call](pipe, arguments)
        except Sd2rtError as error:
            return _one_line(error)
        except Exception as error:
            return "exit 1", f"{type(error).__name__}: {error}"[:300]
    unexpected = [str(warning.message) for warning in seen if warning.category is not UserWarning]
    return ("wrong", f"warned: {unexpected[0]}"[:300]) if unexpected else ("held", "an image was made")


def _one_line(error: Exception) -> Judged:
    text = str(error)
    name = type(error).__name__
    return (
        ("held", f"{name}: {text}"[:300])
        if text and len(text.splitlines()) == 1
        else ("wrong", repr(text)[:300])
    )


@contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield seen


def _repr(value: object) -> str:
    return "10**400" if isinstance(value, int) and abs(value) > 10**100 else repr(value)[:100]


@contextmanager
def _kept_engines() -> Iterator[None]:
    """Load the engines of equal parts once; closing one keeps it open."""
    from sd2rt.engines.onnxruntime.engine import OnnxRuntimeEngine

    class KeptEngine(OnnxRuntimeEngine):
        def close(self) -> None:
            return

    kept: dict[Any, OnnxRuntimeEngine] = {}

    def load(part: Any, path: Path, **options: Any) -> OnnxRuntimeEngine:
        if options.get("weights") is not None or options.get("profile") is not None:
            return OnnxRuntimeEngine(part, path, **options)
        # A changed manifest can name another graph for the same part.
        key = (part, path.name, options.get("threads"))
        if key not in kept:
            kept[key] = KeptEngine(part, path, **options)
        return kept[key]

    # Closed by its class if a file changes while it opens.
    cast(Any, load).close = OnnxRuntimeEngine.close
    with patch("sd2rt.engines.onnxruntime.backend.OnnxRuntimeEngine", load):
        yield
