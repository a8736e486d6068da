"""Bundles that are replaced while they are opened or used.

Two demo bundles with the same graphs and other weights take turns under one name: by ``sd2rt build --force``, or by
another process that renames, deletes or links folders every few milliseconds. Each picture must be the one that the
bundle of the pipeline's manifest makes alone, or the bundle must be refused with exit code 3.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save_file

from benchmarks.faults.recorder import Recorder
from benchmarks.recording import process
from sd2rt.engines.bundle.engine_entry import BackendName
from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.errors import BundleError, Sd2rtError
from sd2rt.engines.weights.initializers import Weights
from sd2rt.runtime import Pipeline

CASES = 400

NAMES = ("demo", "demo-v")
"""Checkpoints with the same graphs: one's weights run under the other's manifest without an error."""

_COMMANDS_SHARE = 20
"""One in so many cases of a group runs ``sd2rt run``."""
_REAL_SHARE = 8
"""One in so many cases runs beside ``sd2rt build --force``, which takes seconds."""

Pictures = dict[str, NDArray[np.float32]]
"""By manner of use."""

_SWAPPER = """
import os, random, shutil, sys, time
from pathlib import Path
from sd2rt.engines.bundle.file_lock import FileLock
target, first, second, manner, seed = sys.argv[1:]
source = random.Random(int(seed))
# The names and the lock of a build: its readers wait for the moment between two renames.
folder, name = os.path.split(target)
fresh, old = (os.path.join(folder, f".{name}.{suffix}") for suffix in ("building", "old"))
lock = FileLock(Path(folder, f".{name}.lock"))
assert lock.acquire()
turn = 0
print("ready", flush=True)
while True:
    bundle = (second, first)[turn % 2]
    shutil.copytree(bundle, fresh, copy_function=os.link if manner == "linked" else shutil.copy2)
    os.rename(target, old)
    os.rename(fresh, target)
    if manner == "renamed":
        for _ in range(20):
            time.sleep(source.random() * 0.01)
            os.rename(target, fresh)
            os.rename(old, target)
            os.rename(fresh, old)
    shutil.rmtree(old)
    turn += 1
    time.sleep(source.random() * 0.1)
"""


def run(recorder: Recorder, cases: int, seed: int) -> None:
    """Use the bundle in every manner beside each kind of replacement."""
    with tempfile.TemporaryDirectory(prefix="sd2rt-faults-") as name:
        folder = Path(name).resolve()
        os.environ["SD2RT_CACHE_DIR"] = str(folder / "cache")
        bundles = []
        for checkpoint in NAMES:
            bundles.append(folder / checkpoint)
            process.measure(process.sd2rt("build", checkpoint, "-o", bundles[-1]))
        lora = folder / "lora.safetensors"
        _write_lora(bundles[0], lora)
        target = folder / "target"
        expected = {}
        for bundle in bundles:
            manifest, pictures = read_manifest(bundle), _alone(bundle, lora)
            # The identity covers the name, which a build takes from its folder.
            for own_name in (manifest.name, target.name):
                expected[manifest.model_copy(update={"name": own_name}).identity] = pictures
        shutil.copytree(bundles[0], target)
        real = cases // _REAL_SHARE
        rest = (cases - real) // 3
        for manner in ("replaced", "linked", "renamed"):
            command = [sys.executable, "-P", "-c", _SWAPPER, *map(str, (target, *bundles)), manner, str(seed)]
            with _beside(command):
                _cases(recorder, manner, target, lora, expected, rest, seed)
            _settle(target, bundles[0])
        with _beside([sys.executable, "-c", _BUILDER, str(target), *NAMES]):
            _cases(recorder, "build --force", target, lora, expected, real, seed)
        left = [path.name for path in (folder / "cache" / "replaced").glob("*")]
        recorder.record("private folders", "left behind" if left else "held", "after all cases", str(left))


_BUILDER = """
import subprocess, sys
target, *names = sys.argv[1:]
print("ready", flush=True)
while True:
    for name in names:
        command = [sys.executable, "-P", "-m", "sd2rt", "build", name, "-o", target, "--force"]
        subprocess.run(command, check=True, capture_output=True)
"""


@contextmanager
def _beside(command: list[str]) -> Iterator[None]:
    # In a group of its own: a build that it runs ends with it.
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert child.stdout is not None
    child.stdout.readline()
    try:
        yield
        if child.poll() is not None:
            raise RuntimeError("the process that replaces the bundle has failed")
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()


def _settle(target: Path, bundle: Path) -> None:
    for path in (target, *target.parent.glob(f".{target.name}.*")):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(bundle, target)


def _cases(
    recorder: Recorder,
    manner: str,
    target: Path,
    lora: Path,
    expected: dict[str, Pictures],
    cases: int,
    seed: int,
) -> None:
    for case in range(cases):
        source = random.Random(f"{seed} {manner} {case}")
        backend: BackendName = source.choice(("onnxruntime", "onnxruntime", "openvino"))
        if case % _COMMANDS_SHARE == _COMMANDS_SHARE - 1:
            _command(recorder, f"sd2rt run, {manner}", str(case), target, expected)
            continue
        use = tuple(_USES)[case % len(_USES)]
        group, label = f"{use}, {manner}", f"{case}: {backend}"
        try:
            pipe = Pipeline.open(target, threads=1, backend=backend)
        except BundleError as error:
            recorder.record(group, "held" if "\n" not in str(error) else "exit 1", label, str(error))
            continue
        except Exception as error:
            recorder.record(group, "exit 1", label, f"{type(error).__name__}: {error}")
            continue
        with pipe:
            # What is loaded late meets another bundle.
            time.sleep(source.random() * (0.2 if use != "opened" else 0))
            try:
                made = _USES[use](pipe, lora)
            except Sd2rtError as error:
                held = isinstance(error, BundleError) and "\n" not in str(error)
                recorder.record(group, "held" if held else "exit 1", label, str(error))
                continue
            except Exception as error:
                recorder.record(group, "exit 1", label, f"{type(error).__name__}: {error}")
                continue
            right = expected[pipe.manifest.identity][f"{use} {backend}"]
            difference = float(np.abs(made - right).max())
        # OpenVINO's sums depend on the memory's alignment.
        wrong = difference > (0 if backend == "onnxruntime" else 1e-3)
        recorder.record(
            group, "wrong" if wrong else "held", label, f"differs by {255 * difference:.2f} of 255"
        )


def _alone(bundle: Path, lora: Path) -> Pictures:
    pictures: Pictures = {}
    backends: tuple[BackendName, ...] = ("onnxruntime", "openvino")
    for backend in backends:
        for use, call in _USES.items():
            with Pipeline.open(bundle, threads=1, backend=backend) as pipe:
                pictures[f"{use} {backend}"] = call(pipe, lora)
    words = process.sd2rt("run", bundle, *_WORDS, "-o", bundle.parent / "alone.png")
    process.measure(words)
    pictures["command"] = _read(bundle.parent / "alone.png")
    return pictures


_WORDS = ("a red circle", "--steps", "2", "--seed", "3", "--size", "64x64", "--threads", "1", "-q")


def _command(recorder: Recorder, group: str, label: str, target: Path, expected: dict[str, Pictures]) -> None:
    path = target.parent / "made.png"
    path.unlink(missing_ok=True)
    command = process.sd2rt("run", target, *_WORDS, "-o", path)
    said = subprocess.run(command, capture_output=True, text=True)
    if said.returncode:
        held = said.returncode == 3 and said.stderr.count("\n") == 1
        recorder.record(group, "held" if held else "exit 1", label, f"{said.returncode}: {said.stderr}")
        return
    with Image.open(path) as image:
        identity = json.loads(image.info["sd2rt"])["identity"]
    same = np.array_equal(_read(path), expected[identity]["command"])
    recorder.record(group, "held" if same else "wrong", label)


def _read(path: Path) -> NDArray[np.float32]:
    with Image.open(path) as image:
        return np.asarray(image, np.float32)


def _text(pipe: Pipeline, lora: Path) -> NDArray[np.float32]:
    return _picture(pipe)


def _late_part(pipe: Pipeline, lora: Path) -> NDArray[np.float32]:
    start = Image.fromarray(np.full((64, 64, 3), (200, 90, 30), np.uint8))
    return _picture(pipe, image=start, strength=0.6)


def _late_lora(pipe: Pipeline, lora: Path) -> NDArray[np.float32]:
    pipe.load_lora(lora)
    return _picture(pipe)


def _lora_removed(pipe: Pipeline, lora: Path) -> NDArray[np.float32]:
    pipe.load_lora(lora)
    time.sleep(0.05)
    pipe.unload_lora()
    return _picture(pipe)


_USES: dict[str, Callable[[Pipeline, Path], NDArray[np.float32]]] = {
    "opened": _text,
    "late part": _late_part,
    "late LoRA": _late_lora,
    "LoRA removed": _lora_removed,
}


def _picture(pipe: Pipeline, **options: Any) -> NDArray[np.float32]:
    size: dict[str, Any] = {} if "image" in options else {"width": 64, "height": 64}
    made = pipe("a red circle", num_inference_steps=2, seed=3, output_type="np", **size, **options)
    return np.asarray(made.images, np.float32)


def _write_lora(bundle: Path, path: Path) -> None:
    """Write a LoRA that changes every attention of the denoiser."""
    source = np.random.default_rng(0)
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, shape in Weights(bundle / "denoiser" / "initializers.json").shapes().items():
        if name.endswith(("attn1.to_q.weight", "attn2.to_k.weight")):
            layer = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            down = source.normal(size=(2, shape[1])).astype(np.float32)
            up = source.normal(scale=0.2, size=(shape[0], 2)).astype(np.float32)
            tensors |= {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}
            tensors[f"{layer}.alpha"] = np.array(2, np.float32)
    save_file(tensors, path)
