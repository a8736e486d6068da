from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd2rt.engines.bundle.reader import Bundle, open_bundle
from sd2rt.engines.bundle.temporary import temporary_folder, temporary_name
from sd2rt.engines.errors import BuildError, BundleError, RequestError
from sd2rt.engines.onnxruntime.prepared import find_prepared, open_prepared, prepare, remove
from sd2rt.engines.onnxruntime.prepared_files import GRAPH, RECORD, WEIGHTS
from sd2rt.runtime import Pipeline
from sd2rt.runtime.cli.main import main


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle that may be deleted, and an empty cache."""
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(tmp_path / "cache"))
    copy = tmp_path / "bundle"
    shutil.copytree(small_bundle, copy)
    return open_bundle(copy)


def image(bundle: Bundle) -> np.ndarray:
    with Pipeline.open(bundle.path, threads=1) as pipeline:
        return np.asarray(pipeline("a fox", seed=1, num_inference_steps=3, output_type="np").images)


def mapped() -> set[str]:
    return {line.split(maxsplit=5)[5].strip() for line in Path("/proc/self/maps").open() if "/" in line}


def test_the_same_image_from_weights_that_are_mapped(bundle: Bundle) -> None:
    expected = image(bundle)
    found = prepare(bundle.path)
    assert [one.part for one in found]
    assert all(one.made for one in found)
    denoiser = next(one for one in found if one.part == "denoiser")
    intact = find_prepared(bundle.part("denoiser"))
    assert intact is not None
    assert intact.load(lambda graph: graph.samefile(denoiser.path / GRAPH), lambda _: None)
    with Pipeline.open(bundle.path, threads=1) as pipeline:
        assert str(denoiser.path / WEIGHTS) in mapped()
        again = np.asarray(pipeline("a fox", seed=1, num_inference_steps=3, output_type="np").images)
    np.testing.assert_array_equal(again, expected)
    assert not any(one.made for one in prepare(bundle.path))


def test_replaced_weights_are_the_graphs_own(bundle: Bundle) -> None:
    """Those are put in before the graph is optimised, which it has been."""
    from sd2rt.engines.onnxruntime.backend import OnnxRuntimeBackend
    from sd2rt.engines.weights.initializers import Weights

    part = bundle.part("decoder")
    known = Weights.of(part, bundle.file(part.onnx))
    name = next(name for name in known if name.endswith("conv_in.weight"))
    prepare(bundle.path, parts=["decoder"])
    backend = OnnxRuntimeBackend(bundle, threads=1)
    pictures = []
    for weights in (None, {name: 2 * known.read(name)}):
        with backend.open("decoder", weights) as engine:
            session = engine.session({"B": 1, "h": 8, "w": 8})
            session.buffers["latents"].write(np.ones((1, 4, 8, 8), np.float32))
            session.launch()
            pictures.append(session.buffers["image"].read())
    assert np.abs(pictures[0] - pictures[1]).max() > 1e-3


def keeping(path: Path, content: bytes) -> None:
    """Write a file, and keep its size and modification time."""
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS, RECORD])
@pytest.mark.parametrize("damage", ["cut", "flipped", "zeroed", "swapped", "missing"])
def test_what_is_not_as_it_was_written_is_not_opened(
    bundle: Bundle, damage: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Size and modification time say nothing; verify finds it, and preparing again repairs it."""
    (found,) = prepare(bundle.path, parts=["decoder"])
    part = bundle.part("decoder")
    path = found.path / name
    content = {file.name: file.read_bytes() for file in found.path.iterdir()}
    if damage == "cut":
        path.write_bytes(content[name][:-1])
    elif damage == "flipped":
        keeping(path, flipped(content[name], len(content[name]) // 2))
    elif damage == "zeroed":
        keeping(path, bytes(len(content[name])))
    elif damage == "swapped":
        keeping(path, content[RECORD if name == GRAPH else GRAPH])
    else:
        path.unlink()
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match=f"the prepared graph is not used: {path}"):
            assert find_prepared(part) is None
    assert main(["verify", str(bundle.path)]) == 3
    error = capsys.readouterr().err
    assert error.startswith(f"sd2rt: {path} ")
    assert error.endswith("run 'sd2rt prepare' again\n")
    (again,) = prepare(bundle.path, parts=["decoder"])
    assert again.made
    assert (again.path / WEIGHTS).read_bytes() == content[WEIGHTS]
    assert main(["verify", str(bundle.path)]) == 0
    assert capsys.readouterr().out.endswith("; 1 prepared graphs are intact\n")


def test_any_bit_of_the_record(bundle: Bundle) -> None:
    (found,) = prepare(bundle.path, parts=["decoder"])
    part, path = bundle.part("decoder"), found.path / RECORD
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(flipped(content, position))
        with pytest.raises(BundleError, match="prepare"):
            open_prepared(part)


def test_a_copy_of_the_cache_is_hashed_once(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sd2rt.engines.bundle.open_files import digest
    from sd2rt.engines.bundle.schema import File

    hashed: list[str] = []

    def noted(file: File, descriptor: int, progress: Any) -> str:
        hashed.append(file.path)
        return digest(file, descriptor, progress)

    monkeypatch.setattr("sd2rt.engines.bundle.open_files.digest", noted)
    prepare(bundle.path, parts=["decoder"])
    hashed.clear()
    assert find_prepared(bundle.part("decoder")) is not None
    assert hashed == [], "preparing has hashed them"
    shutil.copytree(tmp_path / "cache", tmp_path / "second")
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(tmp_path / "second"))
    for _ in range(2):
        assert find_prepared(bundle.part("decoder")) is not None
        assert sorted(hashed) == [GRAPH, WEIGHTS]


def test_another_version_of_onnx_runtime(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = prepare(bundle.path, parts=["decoder"])
    monkeypatch.setattr("onnxruntime.__version__", "99.0")
    assert find_prepared(bundle.part("decoder")) is None
    (other,) = prepare(bundle.path, parts=["decoder"])
    assert other.path != found.path
    assert not found.path.exists(), "nobody opens it any more"


def test_what_is_of_no_use_goes(bundle: Bundle, small_v_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "v"
    shutil.copytree(small_v_bundle, copy)
    (found,) = prepare(copy, parts=["denoiser"])
    dead = temporary_name(found.path, b"abc")
    dead.mkdir()
    with temporary_folder(found.path) as unfinished:
        prepare(bundle.path, parts=["decoder"])
        assert found.path.exists()
        assert not dead.exists()
        shutil.rmtree(copy)
        prepare(bundle.path, parts=["decoder"])
        assert not found.path.exists()
        assert unfinished.exists(), "it is another process's, at work"
    dead.mkdir()
    find_prepared(bundle.part("decoder"))
    assert not dead.exists()


def test_remove(bundle: Bundle) -> None:
    size = sum(one.bytes for one in prepare(bundle.path, parts=["decoder", "encoder"]))
    assert remove(bundle.path) == size
    assert remove(bundle.path) == 0
    assert find_prepared(bundle.part("decoder")) is None


def test_no_room(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(bundle.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(BuildError, match=r"has 0.0 GB free, and the graph of decoder takes up to"):
        prepare(bundle.path, parts=["decoder"])


def test_a_part_that_is_none(bundle: Bundle) -> None:
    with pytest.raises(RequestError, match=r"--part nose: .* has decoder, denoiser"):
        prepare(bundle.path, parts=["nose"])


def test_the_command(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(bundle.path)
    assert main(["prepare", path, "--part", "decoder", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["made"] is True
    assert main(["prepare", path, "--part", "decoder"]) == 0
    assert "decoder: " in (text := capsys.readouterr().out)
    assert "already prepared" in text
    assert main(["prepare", path, "--remove"]) == 0
    assert "MB removed" in capsys.readouterr().out
    assert main(["prepare", path, "--part", "nose"]) == 2
    assert main(["prepare", "/nowhere"]) == 3
