from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.faults.damage import KINDS, damage
from sd2rt.engines.bundle.manifest import MANIFEST, read_manifest
from sd2rt.engines.bundle.reader import open_bundle, verify_no_others
from sd2rt.engines.errors import BundleError

from ...engines.paper_bundle import make_bundle


@pytest.mark.parametrize("keep_times", [True, False], ids=["times kept", "new times"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, keep_times: bool
) -> None:
    """Each damage is refused, or leaves a file that nothing reads."""
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(tmp_path / "cache"))
    bundle = tmp_path / "bundle"
    make_bundle(bundle)
    files = [path for path in sorted(bundle.rglob("*")) if path.is_file()]
    manifest = read_manifest(bundle)
    for number, path in enumerate({path.name: path for path in files}.values()):
        content, status = path.read_bytes(), path.stat()
        open_bundle(bundle)
        others = [other for other in files if other.read_bytes() != content]
        changed = damage(path, kind, random.Random(number), others, keep_times)
        if changed.exists() and kind != "added file":
            assert (changed.stat().st_mtime_ns == status.st_mtime_ns) == keep_times
        if changed == path and path.exists() and path.read_bytes() == content:
            # The zeroed page was zero.
            continue
        try:
            opened = open_bundle(bundle)
        except BundleError:
            assert kind != "added file"
        else:
            assert kind == "added file" or path.name == MANIFEST
            assert opened.manifest == manifest
            if kind == "added file":
                with pytest.raises(BundleError, match="is not listed"):
                    verify_no_others(opened)
        changed.unlink(missing_ok=True)
        path.write_bytes(content)
