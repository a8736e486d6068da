from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sd2rt.engines.bundle.manifest import MANIFEST, Manifest, read_manifest
from sd2rt.engines.errors import BundleError

from ..paper_bundle import make_bundle

Edit = Callable[[dict[str, Any]], object]


def edit(bundle: Path, change: Edit) -> Path:
    path = bundle / MANIFEST
    data = json.loads(path.read_text())
    change(data)
    data.pop("checksum", None)
    path.write_text(json.dumps(data))
    return path


def refusal(bundle: Path) -> str:
    with pytest.raises(BundleError) as caught:
        read_manifest(bundle)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_what_is_written_is_read_back(paper: Path) -> None:
    manifest = read_manifest(paper)
    assert (paper / MANIFEST).read_text() == manifest.to_json()
    assert read_manifest(paper) == manifest
    assert Manifest.model_validate_json(manifest.to_json(), strict=True).to_json() == manifest.to_json()


def test_nothing_changes_once_read(paper: Path) -> None:
    manifest = read_manifest(paper)
    with pytest.raises(ValidationError, match="frozen"):
        manifest.name = "other"


def test_printed_manifest_is_one_line(paper: Path) -> None:
    manifest = read_manifest(paper)
    expected = f"<Manifest stable-diffusion-2 base fp32, 64x64, {manifest.identity[:12]}>"
    assert repr(manifest) == str(manifest) == expected
    sizes = tuple((side, 64) for side in range(64, 4096, 64))
    many = repr(manifest.model_copy(update={"native_sizes": sizes}))
    assert "64x64, 128x64, 192x64, 256x64, ...," in many
    assert "\n" not in many
    assert len(many) < 120


def test_identity_follows_every_entry(paper: Path) -> None:
    before = read_manifest(paper).identity
    assert before == read_manifest(paper).identity
    assert len(before) == 64
    edit(paper, lambda data: data["parts"]["decoder"].update(parameters=8))
    assert read_manifest(paper).identity != before


def test_sides_of_latents(paper: Path) -> None:
    """Bundles of earlier versions do not state a multiple, and keep their identity and their sizes."""
    before = read_manifest(paper)
    assert "side_multiple" not in json.loads(before.to_json())["latents"]
    assert (before.latents.side_multiple, before.latents.size_multiple) == (8, 64)
    assert before.latents.sides(width=100, height=128) == (16, 16)
    edit(paper, lambda data: data["latents"].update(side_multiple=8))
    assert read_manifest(paper).identity == before.identity
    edit(paper, lambda data: data["latents"].update(side_multiple=1))
    after = read_manifest(paper)
    assert (after.latents.side_multiple, after.latents.size_multiple) == (1, 8)
    assert after.latents.sides(width=136, height=120) == (15, 17)
    assert after.identity != before.identity
    assert Manifest.model_validate_json(after.to_json(), strict=True).latents == after.latents
    edit(paper, lambda data: data.update(native_sizes=[[904, 600]]))
    assert read_manifest(paper).native_sizes == ((904, 600),)


def test_native_size_that_the_denoiser_does_not_take(paper: Path) -> None:
    edit(paper, lambda data: data.update(native_sizes=[[904, 600]]))
    assert "native_sizes: width 904 is not a multiple of 64 from 64 to 4096: use 896 or 960" in refusal(paper)


@pytest.mark.parametrize("multiple", [0, 2, 4, 64, -8, "8", None])
def test_multiple_that_no_denoiser_has(paper: Path, multiple: object) -> None:
    edit(paper, lambda data: data["latents"].update(side_multiple=multiple))
    assert "latents.side_multiple" in refusal(paper)


_MATRIX = [[0.1, -0.2, 0.3]] * 4 + [[0.5, 0.4, 0.6]]


def test_a_preview_is_an_addition(paper: Path) -> None:
    """Bundles without it are read, and have the identity that they had before there were any."""
    before = read_manifest(paper)
    assert before.preview is None
    edit(paper, lambda data: data.update(preview={"matrix": _MATRIX, "error": 0.1234}))
    after = read_manifest(paper)
    assert after.preview is not None
    assert [list(row) for row in after.preview.matrix] == _MATRIX
    assert after.preview.error == 0.1234
    assert after.identity == before.identity
    assert Manifest.model_validate_json(after.to_json(), strict=True).preview == after.preview
    edit(paper, lambda data: data.pop("preview"))
    assert read_manifest(paper) == before


@pytest.mark.parametrize(
    ("preview", "said"),
    [
        (
            {"matrix": _MATRIX[1:], "error": 0.1},
            "the matrix of preview has 4 rows, for 4 channels it needs 5",
        ),
        ({"matrix": [*_MATRIX, _MATRIX[0]], "error": 0.1}, "has 6 rows, for 4 channels it needs 5"),
        ({"matrix": [], "error": 0.1}, "preview.matrix"),
        ({"matrix": [[0.1, 0.2]] * 5, "error": 0.1}, "preview.matrix.0"),
        ({"matrix": [[0.1, 0.2, 0.3, 0.4]] * 5, "error": 0.1}, "preview.matrix.0"),
        ({"matrix": [[0.1, 0.2, 1e3]] * 5, "error": 0.1}, "preview.matrix.0.2"),
        ({"matrix": [[0.1, "0.2", 0.3]] * 5, "error": 0.1}, "preview.matrix.0.1"),
        ({"matrix": [[0.1, float("nan"), 0.3]] * 5, "error": 0.1}, ""),
        ({"matrix": [[0.1, float("inf"), 0.3]] * 5, "error": 0.1}, ""),
        ({"matrix": _MATRIX, "error": -0.1}, "preview.error"),
        ({"matrix": _MATRIX, "error": 1.5}, "preview.error"),
        ({"matrix": _MATRIX}, "preview.error"),
        ({"error": 0.1}, "preview.matrix"),
        ({"matrix": _MATRIX, "error": 0.1, "colour": "red"}, "preview.colour: unknown key"),
        ([], "preview"),
    ],
)
def test_a_preview_that_is_wrong(paper: Path, preview: object, said: str) -> None:
    edit(paper, lambda data: data.update(preview=preview))
    assert said in refusal(paper)


def test_identity_does_not_follow_layout(paper: Path) -> None:
    before = read_manifest(paper).identity
    data = json.loads((paper / MANIFEST).read_text())
    (paper / MANIFEST).write_text(json.dumps(dict(reversed(data.items())), indent=7))
    assert read_manifest(paper).identity == before


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda data: data.update(colour="red"), "colour"),
        (lambda data: data["noise"].update(colour="red"), "noise.colour"),
        (lambda data: data["parts"]["denoiser"].update(colour="red"), "parts.denoiser.colour"),
        (lambda data: data["tokenizer"]["file"].update(colour="red"), "tokenizer.file.colour"),
    ],
    ids=["top", "noise", "part", "file"],
)
def test_unknown_key(paper: Path, change: Edit, where: str) -> None:
    path = edit(paper, change)
    assert refusal(paper) == f"{path}: {where}: unknown key: build the bundle again"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("..", "leaves the bundle"),
        ("../outside", "leaves the bundle"),
        ("decoder/../../outside", "leaves the bundle"),
        ("decoder/..", "leaves the bundle"),
        ("/etc/passwd", "leaves the bundle"),
        ("//etc/passwd", "leaves the bundle"),
        ("..\\outside", "leaves the bundle"),
        ("C:\\outside", "leaves the bundle"),
        ("C:outside", "leaves the bundle"),
        ("\\\\host\\share", "leaves the bundle"),
        ("file:///etc/passwd", "leaves the bundle"),
        ("", "is not a normalised file path"),
        (".", "is not a normalised file path"),
        ("./tokenizer.json", "is not a normalised file path"),
        ("decoder//model.onnx", "is not a normalised file path"),
        ("decoder/", "is not a normalised file path"),
        ("a\0b", "is not a normalised file path"),
        ("a\nb", "is not a normalised file path"),
    ],
)
@pytest.mark.parametrize("entry", ["tokenizer", "part"])
def test_path_that_leaves_the_bundle(paper: Path, entry: str, path: str, reason: str) -> None:
    def change(data: dict[str, Any]) -> None:
        part = data["parts"]["decoder"]
        file = data["tokenizer"]["file"] if entry == "tokenizer" else part["files"][0]
        file["path"] = path

    edit(paper, change)
    text = refusal(paper)
    assert reason in text
    assert repr(path) in text


@pytest.mark.parametrize("key", ["onnx", "onnxruntime", "initializers"])
def test_part_path_that_leaves_the_bundle(paper: Path, key: str) -> None:
    edit(paper, lambda data: data["parts"]["decoder"].update({key: "../model.onnx"}))
    assert "leaves the bundle" in refusal(paper)


@pytest.mark.parametrize("key", ["onnx", "onnxruntime", "initializers"])
def test_part_file_that_is_not_vouched_for(paper: Path, key: str) -> None:
    edit(paper, lambda data: data["parts"]["decoder"].update({key: "decoder/other.onnx"}))
    assert "decoder/other.onnx is not listed in the part's files" in refusal(paper)


def test_file_listed_twice_with_two_hashes(paper: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["tokenizer"]["file"]["path"] = "embeddings.npy"

    edit(paper, change)
    assert "embeddings.npy is listed twice, with different contents" in refusal(paper)


@pytest.mark.parametrize("version", [0, 1, 2, 3, "4", None, [4]])
def test_other_schema_version(paper: Path, version: object) -> None:
    edit(paper, lambda data: data.update(schema_version=version))
    assert f"schema version {version!r}, this sd2rt reads 4" in refusal(paper)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["latents"].update(channels="4"),
        lambda data: data["latents"].update(channels=4.0),
        lambda data: data["latents"].update(channels=True),
        lambda data: data["latents"].update(channels=0),
        lambda data: data["latents"].update(scaling_factor=float("nan")),
        lambda data: data["latents"].update(scaling_factor=float("inf")),
        lambda data: data["noise"].update(beta_start=1.5),
        lambda data: data["tokenizer"]["file"].update(sha256="A" * 64),
        lambda data: data["tokenizer"]["file"].update(sha256="a" * 63),
        lambda data: data["tokenizer"]["file"].update(size=-1),
        lambda data: data["parts"]["decoder"]["inputs"][0].update(shape=["h/8"]),
        lambda data: data["parts"]["decoder"]["inputs"][0].update(shape=[-1]),
        lambda data: data["parts"]["decoder"]["inputs"][0].update(dtype="float64"),
        lambda data: data["parts"].update(upscaler=data["parts"]["decoder"]),
        lambda data: data.update(native_sizes=[]),
        lambda data: data.update(native_sizes=[[64]]),
        lambda data: data.update(variant="xl"),
        lambda data: data.pop("license"),
    ],
)
def test_wrong_value(paper: Path, change: Edit) -> None:
    path = edit(paper, change)
    assert refusal(paper).startswith(f"{path}: ")


def test_part_that_is_missing(paper: Path) -> None:
    edit(paper, lambda data: data["parts"].pop("decoder"))
    assert "parts lack decoder" in refusal(paper)


_DEPTH = {"size": [384, 384], "resample": "bilinear", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
_IMAGE_TASK = {"num_inference_steps": 50, "guidance_scale": 7.5, "strength": 0.8, "noise_level": None}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data["tasks"].update({"image-to-image": _IMAGE_TASK}), "parts lack encoder"),
        (
            lambda data: data.update(conditions=[{"name": "masked_image", "channels": 4}]),
            "parts lack encoder",
        ),
        (
            lambda data: data.update(conditions=[{"name": "depth", "channels": 1}]),
            "parts lack depth_estimator",
        ),
        (
            lambda data: data.update(conditions=[{"name": "low_res", "channels": 3}]),
            "task text-to-image and the conditions ['low_res'] do not match",
        ),
        (
            lambda data: data["tasks"]["text-to-image"].update(strength=0.5),
            "parts lack encoder",
        ),
        (
            lambda data: data["tasks"]["text-to-image"].update(noise_level=5),
            "task text-to-image and its default noise_level do not match",
        ),
        (
            lambda data: data["parts"]["denoiser"]["inputs"].append(
                {"name": "extra", "dtype": "float32", "shape": ["B", 3, "h", "w"]}
            ),
            "but this kind of model has missing",
        ),
        (
            lambda data: data.update(low_resolution={"noise": data["noise"], "max_noise_level": 1000}),
            "max_noise_level 1000 is not a timestep",
        ),
        (lambda data: data.update(depth_input={**_DEPTH, "size": [0, 384]}), "depth_input.size.0"),
        (lambda data: data.update(depth_input={**_DEPTH, "std": [0, 1, 1]}), "depth_input.std.0"),
        (lambda data: data.update(depth_input=_DEPTH), "depth_input and the condition depth"),
        (lambda data: data.update(tasks={}), "tasks is empty"),
        (lambda data: data["tasks"].update({"text-to-video": _IMAGE_TASK}), "text-to-video"),
    ],
)
def test_what_a_bundle_cannot_do(paper: Path, change: Edit, reason: str) -> None:
    edit(paper, change)
    assert reason in refusal(paper)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\xff", b"[" * 100_000, b'{"opset": ' + b"9" * 5000 + b"}", b"\x00" * 10],
    ids=["empty", "cut", "binary", "deep", "long number", "zeros"],
)
def test_not_json(paper: Path, content: bytes) -> None:
    (paper / MANIFEST).write_bytes(content)
    assert "is not JSON" in refusal(paper)


@pytest.mark.parametrize("content", [b"[]", b"1", b"null", b'"bundle"'])
def test_json_of_something_else(paper: Path, content: bytes) -> None:
    (paper / MANIFEST).write_bytes(content)
    assert "schema version None" in refusal(paper)


def test_giant(paper: Path) -> None:
    os.truncate(paper / MANIFEST, 10 << 30)
    assert "the limit for a manifest is 67108864" in refusal(paper)


def test_missing_folder(tmp_path: Path) -> None:
    path = tmp_path / "none"
    assert refusal(path) == f"{path} does not exist: build a bundle with 'sd2rt build CHECKPOINT -o {path}'"


def test_folder_without_a_manifest(tmp_path: Path) -> None:
    assert f"{tmp_path} has no bundle.json" in refusal(tmp_path)


def test_file_in_the_folders_place(tmp_path: Path) -> None:
    path = tmp_path / "bundle.zip"
    path.write_bytes(b"PK")
    assert f"{path} is not a folder" in refusal(path)


def test_manifest_that_is_a_folder(paper: Path) -> None:
    (paper / MANIFEST).unlink()
    (paper / MANIFEST).mkdir()
    assert "is not a regular file" in refusal(paper)


def test_manifest_that_is_a_pipe(paper: Path) -> None:
    (paper / MANIFEST).unlink()
    os.mkfifo(paper / MANIFEST)
    assert "is not a regular file" in refusal(paper)


def test_manifest_that_is_a_link(paper: Path) -> None:
    (paper / MANIFEST).rename(paper.parent / MANIFEST)
    (paper / MANIFEST).symlink_to(paper.parent / MANIFEST)
    assert "is a symbolic link" in refusal(paper)


def test_name_that_is_too_long(tmp_path: Path) -> None:
    assert "cannot be read: File name too long" in refusal(tmp_path / ("x" * 300))


def an_engine(data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    sha = hashlib.sha256(b"").hexdigest()
    files = {"file": "denoiser/a.engine", "report": "denoiser/a.json"}
    entry = {
        "part": "denoiser",
        "key": sha,
        "backend": "tensorrt-rtx",
        "version": "1.7.1.116",
        "compute_capabilities": ["8.9"],
        "gpu": None,
        "driver": None,
        "platform": "linux-x86_64",
        "precision": "fp16",
        "version_compatible": False,
        "hardware_compatible": False,
        "options": {"backend": "tensorrt-rtx"},
        "flags": [],
        "label": "512x512-b1",
        "profiles": [{"name": "batch 1", "dims": {"B": [1, 1, 1]}}],
        **{name: {"path": path, "size": 0, "sha256": sha} for name, path in files.items()},
        "onnx": sha,
        "weights": sha,
    }
    return {**entry, **changes}


def test_engines_are_an_addition(paper: Path) -> None:
    before = read_manifest(paper)
    edit(paper, lambda data: data.update(engines=[an_engine(data)]))
    after = read_manifest(paper)
    assert (after.identity, after.files) == (before.identity, before.files)
    assert [file.path for file in after.engine_files] == ["denoiser/a.engine", "denoiser/a.json"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"part": "encoder"}, "engines are listed for parts that the bundle lacks: encoder"),
        ({"compute_capabilities": ["89"]}, "engines.0.compute_capabilities"),
        ({"version": "new"}, "engines.0.version"),
        ({"profiles": []}, "engines.0.profiles"),
        (
            {"profiles": [{"name": "a", "dims": {"B": [2, 1, 4]}}]},
            "B has minimum 2, optimum 1, maximum 4, which are not in order",
        ),
        ({"backend": "onnxruntime"}, "engines.0.backend"),
        ({"file": {"path": "../a", "size": 0, "sha256": "0" * 64}}, "leaves the bundle"),
        (
            {"file": {"path": "bundle.json", "size": 0, "sha256": "0" * 64}},
            "bundle.json is not a valid path for an engine",
        ),
        (
            {"file": {"path": "decoder/a.engine", "size": 0, "sha256": "0" * 64}},
            "is not a valid path for an engine of denoiser",
        ),
        ({"compute_capabilities": []}, "engines.0.compute_capabilities"),
        ({"fast": True}, "unknown key"),
    ],
)
def test_engines_that_are_wrong(paper: Path, changes: dict[str, Any], said: str) -> None:
    edit(paper, lambda data: data.update(engines=[an_engine(data, **changes)]))
    assert said in refusal(paper)


@given(st.data())
def test_any_bit_of_the_manifest(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A changed bit leaves the same manifest or a refusal, never another value."""
    target = tmp_path_factory.getbasetemp() / "flipped"
    if not target.exists():
        make_bundle(target)
    content = bytearray((target / MANIFEST).read_bytes())
    before = read_manifest(target)
    position, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    content[position] ^= 1 << bit
    (target.parent / "damaged").mkdir(exist_ok=True)
    (target.parent / "damaged" / MANIFEST).write_bytes(content)
    try:
        after = read_manifest(target.parent / "damaged")
    except BundleError:
        return
    assert after == before


def test_value_that_was_changed(paper: Path) -> None:
    text = (paper / MANIFEST).read_text()
    (paper / MANIFEST).write_text(text.replace("0.18215", "0.28215"))
    assert refusal(paper) == (
        f"{paper / MANIFEST} was changed after it was written (its checksum does not match): "
        "copy or build the bundle again"
    )


def test_manifest_of_an_earlier_version(paper: Path) -> None:
    before = read_manifest(paper)
    edit(paper, lambda data: None)
    assert "checksum" not in (paper / MANIFEST).read_text()
    assert read_manifest(paper) == before.model_copy(update={"checksum": None})
    assert read_manifest(paper).identity == before.identity
