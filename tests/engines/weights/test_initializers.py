"""The map of a part's weights: reading, validation, and conversion to initialisers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd2rt.engines.errors import BundleError
from sd2rt.engines.weights.initializers import Weight, WeightMap, Weights

KERNEL = np.arange(12, dtype=np.float32).reshape(3, 4)
BIAS = np.array([0.5, -1.5, 2.5], np.float16)


def entry(array: Any, offset: int, transposed: bool = False) -> dict[str, Any]:
    return {
        "initializer": "w.transposed" if transposed else "b",
        "transposed": transposed,
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "offset": offset,
        "length": array.nbytes,
    }


def write(folder: Path, entries: dict[str, Any], data: bytes | None = None, file: str = "data") -> Path:
    content = b"pad" + KERNEL.T.tobytes() + BIAS.tobytes() if data is None else data
    (folder / "data").write_bytes(content)
    path = folder / "initializers.json"
    path.write_text(json.dumps({"file": file, "weights": entries}))
    return path


BOTH = {"w": entry(KERNEL, 3, transposed=True), "b": entry(BIAS, 3 + KERNEL.nbytes)}


def test_values_in_pytorchs_orientation(tmp_path: Path) -> None:
    weights = Weights(write(tmp_path, BOTH))
    assert weights.shapes() == {"w": (3, 4), "b": (3,)}
    assert len(weights) == 2
    for name, value in (("w", KERNEL), ("b", BIAS)):
        value_read = weights.read(name)
        np.testing.assert_array_equal(value_read, value)
        assert value_read.dtype == value.dtype
        assert value_read.flags.writeable
        # Returned in the initialiser's order, so that the replacement needs no copy.
        assert np.shares_memory(weights.replacement(name, value_read)[1], value_read)


def test_what_takes_a_weights_place(tmp_path: Path) -> None:
    weights = Weights(write(tmp_path, BOTH))
    name, stored = weights.replacement("w", KERNEL + 1)
    assert name == "w.transposed"
    assert stored.flags.c_contiguous
    np.testing.assert_array_equal(stored, KERNEL.T + 1)
    name, stored = weights.replacement("b", np.array([1, 2, 1 / 3]))
    assert name == "b"
    assert stored.dtype == np.float16
    np.testing.assert_array_equal(stored, np.array([1, 2, 1 / 3], np.float16))
    with pytest.raises(ValueError, match=r"w has the shape \[3, 4\], not \[4, 3\]"):
        weights.replacement("w", KERNEL.T)
    with pytest.raises(KeyError):
        weights.replacement("v", KERNEL)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    weight_map = WeightMap(file="data", weights={k: Weight.model_validate(v) for k, v in BOTH.items()})
    path = write(tmp_path, BOTH)
    path.write_text(weight_map.to_json())
    assert dict(Weights(path)) == weight_map.weights
    assert len(weight_map.to_json().splitlines()) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"length": 40}, r"40 bytes are not float32\[3, 4\]"),
        ({"shape": [3, 2, 2]}, "cannot be transposed: it does not have two axes"),
        ({"dtype": "int8"}, "Input should be 'float32' or 'float16'"),
        ({"offset": -1}, "greater than or equal to 0"),
        ({"name": "w"}, "Extra inputs are not permitted"),
    ],
)
def test_an_entry_that_cannot_be(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = write(tmp_path, {"w": {**BOTH["w"], **change}})
    with pytest.raises(BundleError, match=rf"initializers\.json: .*{said}.*: build the bundle again"):
        Weights(path)


@pytest.mark.parametrize("file", ["/etc/passwd", "../data", "sub/data", "."])
def test_a_data_file_elsewhere(tmp_path: Path, file: str) -> None:
    with pytest.raises(BundleError, match=r"initializers\.json: file: .*: build the bundle again"):
        Weights(write(tmp_path, BOTH, file=file))


def test_files_that_are_not_whole(tmp_path: Path) -> None:
    path = write(tmp_path, BOTH, data=b"pad" + KERNEL.tobytes()[:-1])
    with pytest.raises(
        BundleError, match="data ends before the last byte of w: copy or build the bundle again"
    ):
        Weights(path).read("w")
    (tmp_path / "data").unlink()
    with pytest.raises(BundleError, match="data cannot be read: No such file"):
        Weights(path).read("w")
    # The earlier format, before the map covered all weights.
    path.write_text('{"w.transposed": {"name": "w", "transposed": true}}')
    with pytest.raises(BundleError, match="build the bundle again"):
        Weights(path)
    path.unlink()
    with pytest.raises(BundleError, match="cannot be read: No such file"):
        Weights(path)
