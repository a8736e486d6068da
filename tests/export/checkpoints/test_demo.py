"""The packaged demo checkpoints: opened by name, complete, and loaded by diffusers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from tokenizers import Tokenizer

from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.bundle.model_kinds import KINDS
from sd2rt.engines.demo.files import DEMO_NAMES, KERNELS, TOKENIZER, WEIGHTS
from sd2rt.engines.errors import CheckpointError
from sd2rt.export.checkpoints import demo
from sd2rt.export.checkpoints.checkpoint import open_checkpoint
from sd2rt.export.checkpoints.tiny_configs import DEMOS
from sd2rt.export.checkpoints.variants import SUPPORTED, PublishedCheckpoint
from sd2rt.export.testing.folder_writer import write_demo
from sd2rt.runtime.cli.main import main

LIMIT_BYTES = 24_000_000


@pytest.mark.parametrize("name", DEMO_NAMES)
def test_every_kind_has_a_name(name: str) -> None:
    opened = open_checkpoint(name)
    kind = DEMO_NAMES[name]
    assert (opened.name, opened.release, opened.variant, opened.native_size) == (name, None, kind, 128)
    assert opened.license == "Apache-2.0"
    assert opened.source == {
        file: hashlib.sha256((WEIGHTS / file).read_bytes()).hexdigest() for file in opened.source
    }
    assert len(opened.source) == len(DEMOS[kind].parts)
    assert (opened.depth_input is not None) == ("depth_estimator" in KINDS[kind].parts)
    assert (opened.low_resolution is not None) == (kind == "upscaler")
    for part in DEMOS[kind].parts:
        network = getattr(opened, part)()
        assert all(tensor.isfinite().all() for tensor in network.state_dict().values())


def test_the_token_table_is_sd2s_with_zeros_for_what_no_caption_has() -> None:
    table = open_checkpoint("demo").text_encoder().state_dict()["embeddings.token_embedding.weight"]
    assert table.shape == (49408, 96)
    assert table.dtype == torch.float32
    used = table.abs().sum(1) > 0
    assert 20 < int(used.sum()) < 200
    # The start, end and padding tokens.
    assert used[[49406, 49407, 0]].all()


def test_the_package_stays_small() -> None:
    files = {file for name in DEMO_NAMES for file in open_checkpoint(name).source}
    assert {path.name for path in WEIGHTS.iterdir()} == files | {"NOTICE", KERNELS.name}
    assert sum((WEIGHTS / file).stat().st_size for file in files) <= LIMIT_BYTES


@pytest.mark.parametrize("row", SUPPORTED, ids=lambda row: row.name)
def test_demo_by_a_published_variant(row: PublishedCheckpoint) -> None:
    if row.kind == "turbo":
        with pytest.raises(
            CheckpointError, match=r"^there is no demo of sd-turbo, .*: choose one of demo, demo-v, "
        ):
            open_checkpoint("demo", variant=row.name)
        return
    opened = open_checkpoint("demo", variant=row.name)
    assert opened.variant == row.kind == DEMO_NAMES[opened.name]
    assert open_checkpoint(opened.name, variant=row.name).source == opened.source


def test_a_variant_that_contradicts_the_name() -> None:
    with pytest.raises(CheckpointError, match=r"^demo-v is not a 2.0-depth: .* use demo-depth"):
        open_checkpoint("demo-v", variant="2.0-depth")


def test_a_package_without_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "WEIGHTS", tmp_path)
    with pytest.raises(CheckpointError, match=r"^the demo's weights are incomplete, .*: reinstall sd2rt, or"):
        open_checkpoint("demo-x4")


def test_several_are_built_without_exporting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(tmp_path))
    assert main(["build", *DEMO_NAMES, "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    done = [event["path"] for event in events if event["event"] == "done"]
    assert done == [str(tmp_path / "bundles" / name) for name in DEMO_NAMES]
    assert main(["build", "demo", "demo-v", "-o", str(tmp_path / "one")]) == 2


def test_options_of_checkpoints_go_through_export(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(tmp_path))
    assert main(["build", "demo", "--variant", "2.0-depth"]) == 0
    assert read_manifest(tmp_path / "bundles" / "demo").variant == "depth"
    # A folder comes before a demo of the same name.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo-v").mkdir()
    assert main(["build", "demo-v"]) == 3
    assert "demo-v" in capsys.readouterr().err


def test_diffusers_loads_the_folder(tmp_path: Path) -> None:
    folder = write_demo(tmp_path, "demo")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    for opened in (open_checkpoint("demo"), open_checkpoint(str(folder))):
        for part in ("text_encoder", "unet", "vae"):
            theirs, ours = getattr(pipeline, part).state_dict(), getattr(opened, part)().state_dict()
            assert theirs.keys() == ours.keys()
            assert all(torch.equal(theirs[key], ours[key]) for key in ours)
    assert pipeline.tokenizer("a red circle").input_ids[0] == 49406


def test_the_tokenizer_is_stored_as_the_library_writes_it() -> None:
    """A bundle has this file as it is, whether the library read it in between or not."""
    assert Tokenizer.from_file(str(TOKENIZER)).to_str() == TOKENIZER.read_text(encoding="utf-8")
