"""Hashes and seeds of rows."""

from __future__ import annotations

from pathlib import Path

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.rows.identity import IdentifiedRow, RowHashes, derived_seed, identified
from sd2rt.runtime.rows.row import Row
from sd2rt.runtime.rows.series import Series


def test_hashes_of_rows(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    rows = [
        Row(1, "a"),
        Row(1, "b"),
        Row(1, "a", {"width": 64}),
        Row(1, "a", count=2),
        Row(1, "a", {"image": str(tmp_path / "a.png")}),
    ]
    hashes = [RowHashes({}).of(row, None) for row in rows]
    hashes += [RowHashes({}).of(rows[0], 1), RowHashes({"bundle": "x"}).of(rows[0], None)]
    assert len(set(hashes)) == len(hashes)
    # Lines may be moved; equal rows are numbered.
    assert RowHashes({}).of(Row(7, "a"), None) == hashes[0]
    both = RowHashes({})
    assert both.of(rows[0], None) != both.of(rows[0], None)
    (tmp_path / "a.png").write_bytes(b"ab")
    assert RowHashes({}).of(rows[4], None) != hashes[4]


def test_named_rows_have_their_hash_wherever_they_are() -> None:
    row = Row(1, "a")
    hashes = RowHashes({})
    assert hashes.named(row, None, "x") == hashes.named(row, None, "x")
    assert len({hashes.named(row, None, name) for name in ("x", "y", "")}) == 3
    assert hashes.of(row, None) == RowHashes({}).of(row, None)


def keys_and_seeds(rows: list[Row | RequestError], seed: int | None) -> list[tuple[str, int | None]]:
    found = identified(rows, Series({}, 2, seed), RowHashes({}), seed is None)
    return [(row.key, row.row.seed) for row in found if isinstance(row, IdentifiedRow)]


def test_seeds_are_those_of_the_command() -> None:
    rows: list[Row | RequestError] = [
        Row(1, "a"),
        Row(2, "b", count=3),
        RequestError("no"),
        Row(3, "a", seed=9),
    ]
    assert [seed for _, seed in keys_and_seeds([*rows, Row(4, "c")], 5)] == [5, 7, 9, 12]


def test_rows_without_a_seed_keep_their_own() -> None:
    rows: list[Row | RequestError] = [Row(1, "a"), Row(2, "a"), Row(3, "b", seed=-1)]
    first = keys_and_seeds(rows, None)
    assert len(set(first)) == 3
    assert all(seed == derived_seed(key) for key, seed in first)
    # Wherever they stand, and whichever process asks.
    assert keys_and_seeds(rows[::-1], None)[0] == first[2]
    assert keys_and_seeds([Row(1, "a")], None)[0] == first[0]
