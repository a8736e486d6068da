"""Rows of tables: CSV and Parquet files with a column for each option."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from sd2rt.engines.errors import MissingDependencyError, RequestError
from sd2rt.runtime.rows.reading import read_rows
from sd2rt.runtime.rows.row import Row


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        "prompt,seed,size,cfg,sampler_options,negative\r\n"
        '"a ""red"" fox, at night",3,64x128,"9,3",,7\r\n'
        'true,,,2.5,"{""solver_order"": 3}",\r\n'
        ",1,,,,\r\n"
        "b,x,,,,\r\n"
        "c,1,,,,,9\r\n",
        encoding="utf-8-sig",
    )
    first, second, third, fourth, fifth = read_rows(str(path))
    fields = {"width": 64, "height": 128, "guidance_scale": (9.0, 3.0), "negative_prompt": "7"}
    assert first == Row(2, 'a "red" fox, at night', fields, 3)
    assert second == Row(3, "true", {"guidance_scale": 2.5, "sampler_options": {"solver_order": 3}})
    errors = [str(row) for row in (third, fourth, fifth)]
    assert errors[0].startswith("line 4: there is no prompt")
    assert errors[1] == "line 5: seed is 'x': use a whole number"
    assert errors[2] == "line 6: it has more cells than the first line has columns"


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"prompt": "7", "seed": 3, "size": None, "sampler_options": {"solver_order": 3, "lower": None}},
        {"prompt": "b", "seed": None, "size": "64x64", "sampler_options": None},
        {"prompt": None, "seed": 1, "size": None, "sampler_options": None},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    first, second, third = read_rows(str(tmp_path / "rows.parquet"))
    assert first == Row(1, "7", {"sampler_options": {"solver_order": 3}}, 3)
    assert second == Row(2, "b", {"width": 64, "height": 64})
    assert str(third).startswith("line 3: there is no prompt")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.csv", b"prompt\n", "holds no row"),
        ("a.csv", b'prompt\n"a', "is not CSV"),
        ("a.csv", b"prompt\n\xff", "cannot be read"),
        ("a.parquet", b"prompt", "cannot be read"),
        ("a.jsonl", b"a\x00", "is not text"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(RequestError, match=said):
        read_rows(str(tmp_path / name))


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules: dict[str, Any] = sys.modules
    monkeypatch.setitem(modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match="needs pyarrow, which is not installed"):
        read_rows(str(tmp_path / "a.parquet"))
