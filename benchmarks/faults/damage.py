"""Damaged files of a bundle, and of its prepared graphs.

A case damages one file, opens the bundle, makes a picture with every part and verifies the bundle. The picture must
be right or the bundle refused with exit code 3, and ``sd2rt verify`` must find the damage. Half of the cases have
receipts from before the damage; half keep the file's modification time.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.faults.recorder import Outcome, Recorder
from benchmarks.recording.bundle import build_demo
from sd2rt.engines.bundle.manifest import MANIFEST, Manifest, read_manifest
from sd2rt.engines.errors import BundleError, Sd2rtError
from sd2rt.engines.onnxruntime.prepared import prepare
from sd2rt.runtime import Pipeline
from sd2rt.runtime.cli.main import main

CASES = 1920

KINDS = ("flipped bit", "truncated", "appended", "zeroed page", "other file's bytes", "missing", "added file")
_PAGE = 4096

Picture = NDArray[np.float32]


def run(recorder: Recorder, cases: int, seed: int) -> None:
    """Damage each file of the demo and of its prepared graphs in turn."""
    with tempfile.TemporaryDirectory(prefix="sd2rt-faults-") as name, _cache(Path(name) / "cache"):
        folder = Path(name).resolve()
        bundle = build_demo(folder)
        expected = picture(bundle)
        plain = [(path, bundle) for path in sorted(bundle.rglob("*")) if path.is_file()]
        for case in range(cases // 2):
            _case(recorder, bundle, plain, expected, case, seed)
        with _cache(folder / "cache-prepared"):
            roots = [prepared.path for prepared in prepare(bundle)]
            if not np.array_equal(picture(bundle), expected):
                recorder.record("prepared graphs", "wrong", "undamaged")
            saved = [(path, root) for root in roots for path in sorted(root.iterdir())]
            for case in range(cases // 2, cases):
                _case(recorder, bundle, saved, expected, case, seed)


def picture(bundle: Path) -> Picture:
    """A small picture that depends on every part of the demo."""
    start = Image.fromarray(np.full((64, 64, 3), (200, 90, 30), np.uint8))
    with Pipeline.open(bundle, threads=1) as pipe:
        made = pipe(
            "a red circle", image=start, strength=0.6, num_inference_steps=2, seed=3, output_type="np"
        )
    return np.asarray(made.images, np.float32)


def damage(path: Path, kind: str, source: random.Random, others: list[Path], keep_times: bool) -> Path:
    """Damage a file, and return the path that was changed: another one for an added file.

    Args:
        kind: one of :data:`KINDS`.
        others: files whose bytes may take the place of this one's.
        keep_times: restore the modification time.
    """
    content, status = bytearray(path.read_bytes()), path.stat()
    if kind == "flipped bit":
        content[source.randrange(len(content))] ^= 1 << source.randrange(8)
    elif kind == "truncated":
        del content[source.randrange(len(content)) :]
    elif kind == "appended":
        content += source.randbytes(source.choice((1, 8, _PAGE)))
    elif kind == "zeroed page":
        start = source.randrange(len(content)) // _PAGE * _PAGE
        content[start : start + _PAGE] = bytes(len(content[start : start + _PAGE]))
    elif kind == "other file's bytes":
        content = bytearray(source.choice(others).read_bytes())
    elif kind == "missing":
        path.unlink()
        return path
    else:
        path = path.with_name(f"{source.choice(('', '.'))}added-{source.randrange(100)}{path.suffix}")
    path.write_bytes(content)
    if keep_times:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return path


def _case(
    recorder: Recorder, bundle: Path, files: list[tuple[Path, Path]], expected: Picture, case: int, seed: int
) -> None:
    source = random.Random(f"{seed} {case}")
    path, root = files[case % len(files)]
    kind = KINDS[case // len(files) % len(KINDS)]
    keep_times, receipts = source.random() < 0.5, source.random() < 0.5
    group = f"{kind}, {'bundle' if root == bundle else 'prepared graphs'}"
    label = f"{case}: {path.relative_to(root)}, {'times kept' if keep_times else 'new times'}"
    content, status, manifest = path.read_bytes(), path.stat(), read_manifest(bundle)
    if not receipts:
        shutil.rmtree(Path(os.environ["SD2RT_CACHE_DIR"]) / "receipts", ignore_errors=True)
    changed = damage(path, kind, source, [other for other, _ in files if other != path], keep_times)
    try:
        same = kind not in ("missing", "added file") and path.read_bytes() == content
        if root != bundle and kind == "added file":
            # Nothing reads it, and nothing lists the folder but the commands that remove it.
            same = True
        outcome, detail = _outcome(bundle, expected, manifest, same=same or _same_manifest(path, manifest))
    finally:
        if changed != path:
            changed.unlink()
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    recorder.record(group, outcome, label, detail)


def _outcome(bundle: Path, expected: Picture, manifest: Manifest, *, same: bool) -> tuple[Outcome, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            difference = float(np.abs(picture(bundle) - expected).max())
        if difference:
            return "wrong", f"the picture differs by up to {255 * difference:.0f} of 255"
        detail = "the right picture"
    except Sd2rtError as error:
        if not isinstance(error, BundleError) or "\n" in str(error):
            return "exit 1", f"exit code {error.exit_code}: {error}"
        detail = str(error)
    except Exception as error:
        return "exit 1", f"{type(error).__name__}: {error}"
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(["verify", str(bundle)])
    if code not in (0, 3) or said.getvalue().count("\n") > 1:
        return "exit 1", f"verify exits with {code}: {said.getvalue()}"
    if code == 0 and not same:
        return "wrong", f"verify finds nothing; {detail}"
    return "held", detail


def _same_manifest(path: Path, manifest: Manifest) -> bool:
    """The file is a manifest with the same values, such as with another case of an exponent."""
    if path.name != MANIFEST:
        return False
    try:
        return read_manifest(path.parent) == manifest
    except BundleError:
        return False


@contextmanager
def _cache(folder: Path) -> Iterator[None]:
    before = os.environ.get("SD2RT_CACHE_DIR")
    os.environ["SD2RT_CACHE_DIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SD2RT_CACHE_DIR"]
        else:
            os.environ["SD2RT_CACHE_DIR"] = before
