"""Builds with a fake exporter: which parts are kept, and which rebuilt. tests/parity/ tests export itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from torch import nn

from sd2rt.engines.bundle.files import describe
from sd2rt.engines.bundle.model_kinds import KINDS, UNTILED, ModelKind, PartName
from sd2rt.engines.bundle.part_interface import Interface
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.bundle.schema import Part, Precision
from sd2rt.engines.errors import BuildError
from sd2rt.export.build import build
from sd2rt.export.checkpoints.checkpoint import Checkpoint, open_checkpoint
from sd2rt.export.checkpoints.pipeline_configs import Config
from sd2rt.export.checkpoints.tiny_configs import SMALL
from sd2rt.export.graphs.onnx_part import OPSET
from sd2rt.export.testing.random_weights import random_checkpoint

ALL = list(KINDS["base"].parts)


class Exporter:
    """Fake ``make_part`` and ``tiled_part``; with ``stop`` set, raises in the middle of a part."""

    def __init__(self) -> None:
        self.exported: list[str] = []
        self.stop: tuple[str, BaseException] | None = None

    def __call__(
        self,
        name: PartName,
        module: nn.Module,
        interface: Interface,
        bundle: Path,
        precision: Precision,
        config: Config,
        exporters: Mapping[str, str],
        progress: Callable[[float], None],
        *,
        float32_scores: bool = False,
    ) -> Part:
        folder = bundle / name
        folder.mkdir()
        (folder / "model.onnx").write_text(f"graph of {name}")
        progress(0.5)
        if self.stop is not None and self.stop[0] == name:
            raise self.stop[1]
        (folder / "initializers.json").write_text("{}")
        self.exported.append(name)
        files = (f"{name}/initializers.json", f"{name}/model.onnx")
        return Part(
            precision=precision,
            onnx=files[1],
            onnxruntime=files[1],
            files=tuple(describe(bundle, file) for file in files),
            opset=OPSET,
            inputs=interface.inputs,
            outputs=interface.outputs,
            initializers=files[0],
            parameters=sum(parameter.numel() for parameter in module.parameters()),
        )

    def tiled(
        self, half: Part, bundle: Path, interface: Interface, norms: Sequence[str], levels: int
    ) -> Part:
        path = Path(half.onnx).with_name("tiled.onnx").as_posix()
        name = f"tiled_{Path(half.onnx).parent.name}"
        (bundle / path).write_text(f"graph of {name}")
        if self.stop is not None and self.stop[0] == name:
            raise self.stop[1]
        self.exported.append(name)
        files = (*half.files, describe(bundle, path))
        tensors = {"inputs": interface.inputs, "outputs": interface.outputs}
        return half.model_copy(update={"onnx": path, "onnxruntime": path, "files": files, **tensors})


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Exporter:
    fake = Exporter()
    monkeypatch.setattr("sd2rt.export.build.make_part", fake)
    monkeypatch.setattr("sd2rt.export.build.tiled_part", fake.tiled)
    return fake


@pytest.fixture(scope="module")
def checkpoint(small_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(str(small_checkpoint))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "shelf" / "bundle"


def names(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def test_bundle_says_what_it_was_made_from(exporter: Exporter, checkpoint: Checkpoint, target: Path) -> None:
    result = build(checkpoint, target, sizes=[(128, 64), (64, 64)])
    assert result.fresh
    assert result.path == target
    manifest = open_bundle(target).manifest
    assert manifest == result.manifest
    assert manifest.native_sizes == ((128, 64), (64, 64))
    assert manifest.source.files == checkpoint.source
    assert (manifest.embeddings.tokens, manifest.embeddings.width) == (49408, 32)
    assert (manifest.tokenizer.bos, manifest.tokenizer.eos, manifest.tokenizer.pad) == (49406, 49407, 0)
    assert names(target) == ["bundle"]


def test_a_bundle_carries_the_licence_beside_the_weights(
    exporter: Exporter, small_checkpoint: Path, checkpoint: Checkpoint, target: Path, tmp_path: Path
) -> None:
    plain = build(checkpoint, target).manifest
    assert plain.license_files == ()
    assert "license_files" not in (target / "bundle.json").read_text()
    folder = tmp_path / small_checkpoint.name
    shutil.copytree(small_checkpoint, folder)
    texts = {"LICENSE.md": b"terms", "README.md": b"---\nlicense: openrail++\n---\n"}
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    result = build(open_checkpoint(str(folder)), target, replace=True)
    # Other texts are another build.
    assert result.fresh
    manifest = open_bundle(target, trust_receipts=False).manifest
    assert {file.path: (target / file.path).read_bytes() for file in manifest.license_files} == {
        f"license/{name}": text for name, text in texts.items()
    }
    assert manifest.license == plain.license == "CreativeML Open RAIL++-M"
    (folder / "README.md").write_bytes(b"---\nlicense: other\nlicense_name: my-terms\n---\n")
    assert build(open_checkpoint(str(folder)), target, replace=True).manifest.license == "my-terms"


def test_second_build_does_nothing(exporter: Exporter, checkpoint: Checkpoint, target: Path) -> None:
    first = build(checkpoint, target)
    second = build(checkpoint, target)
    assert (first.fresh, second.fresh) == (True, False)
    assert second.manifest == first.manifest
    assert exporter.exported == ALL


def test_force_builds_again(exporter: Exporter, checkpoint: Checkpoint, target: Path) -> None:
    build(checkpoint, target)
    assert not build(checkpoint, target, replace=True).fresh
    assert build(checkpoint, target, again=True).fresh
    assert exporter.exported == ALL * 2


def test_damaged_bundle_is_built_again(exporter: Exporter, checkpoint: Checkpoint, target: Path) -> None:
    build(checkpoint, target)
    (target / "denoiser" / "model.onnx").write_text("graph of something")
    assert build(checkpoint, target).fresh
    assert open_bundle(target).manifest.parts["denoiser"].parameters > 0


@pytest.mark.parametrize("stopped", ALL)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_rerun_exports_only_what_was_not_finished(
    exporter: Exporter, checkpoint: Checkpoint, target: Path, stopped: PartName, error: BaseException
) -> None:
    exporter.stop = (stopped, error)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else BuildError):
        build(checkpoint, target)
    assert not target.exists()
    done = ALL.index(stopped)
    assert exporter.exported == ALL[:done]
    assert names(target) == ([".bundle.building"] if done else [])
    exporter.stop = None
    assert build(checkpoint, target).fresh
    assert exporter.exported == ALL
    assert names(target) == ["bundle"]
    open_bundle(target)


def test_rerun_with_other_options_starts_again(
    exporter: Exporter, checkpoint: Checkpoint, target: Path
) -> None:
    exporter.stop = ("decoder", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        build(checkpoint, target)
    exporter.stop = None
    exporter.exported.clear()
    build(checkpoint, target, precision="fp16")
    assert exporter.exported == ALL
    assert open_bundle(target).manifest.precision == "fp16"


def test_other_options_want_force(exporter: Exporter, checkpoint: Checkpoint, target: Path) -> None:
    before = build(checkpoint, target).manifest
    with pytest.raises(BuildError, match="add --force to replace it"):
        build(checkpoint, target, precision="fp16")
    assert open_bundle(target).manifest == before
    assert exporter.exported == ALL


def test_disk_that_is_too_small(
    exporter: Exporter, checkpoint: Checkpoint, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**7, 10**7, 10**6))
    with pytest.raises(BuildError, match=r"needs about [0-9.]+ MB, .* has 1.0 MB free: make room"):
        build(checkpoint, target)
    assert exporter.exported == []
    assert names(target) == []


def test_progress_of_every_part(exporter: Exporter, checkpoint: Checkpoint, target: Path) -> None:
    heard: list[tuple[str, float]] = []
    build(checkpoint, target, progress=lambda part, fraction: heard.append((part, fraction)))
    expected = [
        (part, fraction) for part in ALL for fraction in ((0.0, 1.0) if part in UNTILED else (0.0, 0.5, 1.0))
    ]
    assert heard == [*expected, ("bundle", 0.0), ("bundle", 1.0)]


@pytest.mark.parametrize("kind", ["turbo", "inpainting", "depth", "upscaler"])
def test_bundle_says_what_it_can_do(
    exporter: Exporter, request: pytest.FixtureRequest, target: Path, kind: ModelKind
) -> None:
    checkpoint = open_checkpoint(str(request.getfixturevalue(f"small_{kind}_checkpoint")))
    manifest = build(checkpoint, target, precision="fp16").manifest
    row = KINDS[kind]
    assert (manifest.variant, manifest.tasks, manifest.conditions) == (kind, row.tasks, row.conditions)
    assert list(manifest.parts) == exporter.exported == list(row.parts)
    assert {name for name, part in manifest.parts.items() if part.precision == "fp32"} == set(row.fp32_parts)
    assert manifest.latents.vae_factor == row.vae_factor
    shown = {tensor.name: tensor.shape for tensor in manifest.parts["denoiser"].inputs}
    assert ("extra" in shown) == bool(row.conditions)
    assert ("noise_level" in shown) == row.class_label
    if row.conditions:
        assert shown["extra"] == ("B", row.in_channels - 4, "h", "w")


def test_the_preview_is_fitted_to_the_decoder(
    exporter: Exporter, checkpoint: Checkpoint, small_checkpoint: Path, target: Path, tmp_path: Path
) -> None:
    """Alike in every precision and build; other decoders have other previews, other builds other keys."""
    first = build(checkpoint, target).manifest
    assert first.preview is not None
    assert len(first.preview.matrix) == 5
    assert 0 < first.preview.error < 0.5
    again = build(checkpoint, target, again=True).manifest
    assert (again.preview, again.build_key) == (first.preview, first.build_key)
    assert build(checkpoint, target, precision="fp16", replace=True).manifest.preview == first.preview
    other = random_checkpoint(tmp_path / "other", configs=SMALL, seed=2)
    shutil.copytree(small_checkpoint, tmp_path / "mixed")
    shutil.rmtree(tmp_path / "mixed" / "vae")
    shutil.copytree(other / "vae", tmp_path / "mixed" / "vae")
    mixed = build(open_checkpoint(str(tmp_path / "mixed")), target, replace=True).manifest
    assert mixed.preview != first.preview


def test_loras_are_part_of_what_a_bundle_is_made_from(
    exporter: Exporter, checkpoint: Checkpoint, target: Path, tmp_path: Path
) -> None:
    from sd2rt.export.checkpoints.arguments import read_loras
    from sd2rt.export.checkpoints.changes.lora_merge import with_loras

    from ..lora_files import ATTENTION, draw, write

    networks = {"unet": checkpoint.unet(), "text_encoder": checkpoint.text_encoder()}
    shapes = {
        network: {key.removeprefix("text_model."): tuple(v.shape) for key, v in module.state_dict().items()}
        for network, module in networks.items()
    }
    path = write(tmp_path / "toy.safetensors", "kohya", draw(ATTENTION, shapes))
    plain = build(checkpoint, target).manifest
    keys = {plain.build_key}
    for word in (str(path), f"{path}:0.5"):
        # They change neither decoder nor preview.
        merged = build(with_loras(checkpoint, read_loras([word])), target, replace=True).manifest
        assert merged.source.files.items() > plain.source.files.items()
        assert merged.preview == plain.preview
        keys.add(merged.build_key)
    assert len(keys) == 3
    assert with_loras(checkpoint, []) is checkpoint


def test_a_lora_that_cannot_be_built_in(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sd2rt.runtime.cli.main import main

    words = [
        "build",
        str(small_checkpoint),
        "-o",
        str(tmp_path / "b"),
        "--lora",
        str(tmp_path / "no.safetensors"),
    ]
    assert main(words) == 3
    said = capsys.readouterr().err
    assert said == f"sd2rt: {tmp_path}/no.safetensors cannot be read: No such file or directory\n"
    assert not (tmp_path / "b").exists()
