"""`sd2rt inspect` shows LoRAs that a build has merged, and the licence with its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sd2rt.engines.bundle.files import describe
from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.demo.build import build_demo
from sd2rt.runtime.cli.main import main


def test_merged_loras(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = build_demo("demo", tmp_path / "bundle").manifest
    assert manifest.merged_loras == {}
    main(["inspect", str(tmp_path / "bundle")])
    assert "LoRAs" not in capsys.readouterr().out
    source = manifest.source.model_copy(
        update={"files": {**manifest.source.files, "LoRA toy at 0.8": "a" * 64, "LoRA b:c at -1": "b" * 64}}
    )
    (tmp_path / "bundle" / "bundle.json").unlink()
    (tmp_path / "bundle" / "bundle.json").write_text(manifest.model_copy(update={"source": source}).to_json())
    expected = {"toy at 0.8": "a" * 64, "b:c at -1": "b" * 64}
    assert read_manifest(tmp_path / "bundle").merged_loras == expected
    main(["inspect", str(tmp_path / "bundle")])
    # The table may be wrapped.
    shown = " ".join(capsys.readouterr().out.split())
    assert "LoRAs b:c at -1 (bbbbbbbbbbbb), toy at 0.8 (aaaaaaaaaaaa), merged" in shown
    main(["inspect", str(tmp_path / "bundle"), "--json"])
    assert json.loads(capsys.readouterr().out)["merged_loras"] == expected


def test_licence_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "bundle"
    manifest = build_demo("demo", bundle).manifest
    main(["inspect", str(bundle)])
    assert "license Apache-2.0 " in " ".join(capsys.readouterr().out.split())
    (bundle / "license").mkdir()
    (bundle / "license" / "LICENSE.md").write_text("terms")
    carried = manifest.model_copy(update={"license_files": (describe(bundle, "license/LICENSE.md"),)})
    (bundle / "bundle.json").unlink()
    (bundle / "bundle.json").write_text(carried.to_json())
    main(["inspect", str(bundle)])
    assert "license Apache-2.0, license/LICENSE.md" in " ".join(capsys.readouterr().out.split())
    main(["inspect", str(bundle), "--json"])
    (listed,) = json.loads(capsys.readouterr().out)["license_files"]
    assert listed["path"] == "license/LICENSE.md"
    # The text changes no picture; the bundle is verified with it.
    assert read_manifest(bundle).identity == manifest.identity
    assert main(["verify", str(bundle)]) == 0
    (bundle / "license" / "LICENSE.md").write_text("torms")
    assert main(["verify", str(bundle)]) == 3
