from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd2rt.engines.errors import BundleError
from sd2rt.engines.writer import describe
from sd2rt.runtime.pipeline import Pipeline


@pytest.fixture
def copy(small_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(small_bundle, tmp_path / "copy")
    return tmp_path / "copy"


def replace(bundle: Path, key: str, content: bytes) -> Path:
    """Another file, and a manifest that vouches for it."""
    data = json.loads((bundle / "bundle.json").read_text())
    path = bundle / str(data[key]["file"]["path"])
    path.write_bytes(content)
    data[key]["file"] = describe(bundle, path.name).model_dump()
    (bundle / "bundle.json").write_text(json.dumps(data))
    return path


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: b"", "is no array"),
        (lambda: b"garbage" * 100, "is no array"),
        (lambda: npy(np.zeros((49408, 32), np.float32))[:-8], "is no array"),
        (lambda: npy(np.array([print], object)), "is no array"),
        (
            lambda: npy(np.zeros((10, 32), np.float32)),
            r"holds float32\[10, 32\], its manifest says float32\[49408, 32\]",
        ),
        (lambda: npy(np.zeros((49408, 32), np.float16)), r"holds float16\[49408, 32\]"),
        (lambda: npy(np.zeros((49408, 2, 16), np.float32)), r"holds float32\[49408, 2, 16\]"),
    ],
    ids=["empty", "garbage", "cut", "pickle", "few tokens", "half", "three axes"],
)
def test_table_that_is_not_what_the_manifest_says(
    copy: Path, content: Callable[[], bytes], said: str
) -> None:
    path = replace(copy, "embeddings", content())
    with pytest.raises(BundleError, match=f"^{path} {said}.*: build the bundle again$"):
        Pipeline.open(copy, threads=1)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff"])
def test_tokenizer_that_is_none(copy: Path, content: bytes) -> None:
    path = replace(copy, "tokenizer", content)
    with pytest.raises(BundleError, match=f"^{path} is no tokenizer .*: build the bundle again$"):
        Pipeline.open(copy, threads=1)
