from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sd2rt.engines.host_buffers import HostBuffer
from sd2rt.runtime.denoising.batch_rows import BatchRows
from sd2rt.runtime.prompts.text_conditioning import TextConditioning

WIDTH = 3


def text(value: float, tokens: int = 2) -> NDArray[np.float32]:
    return np.arange(tokens * WIDTH, dtype=np.float32).reshape(tokens, WIDTH) + np.float32(100 * value)


A, B, C, U = (text(value) for value in range(4))


def buffers(rows: BatchRows) -> dict[str, Any]:
    count, prompts = rows.cond.shape
    shapes = {"text": (len(rows.row), rows.length, WIDTH), "row": (len(rows.row),), "uncond": (count,)}
    shapes |= {"cond": (count, prompts), "shares": (count, prompts)}
    dtypes = {"text": "float32", "shares": "float32"}
    return {name: HostBuffer(shape, dtypes.get(name, "int64")) for name, shape in shapes.items()}


def combined(rows: BatchRows, sample: int, values: NDArray[np.float64]) -> float:
    """m_c of a sample, where the network makes ``values`` of the rows."""
    shares = rows.shares[sample].astype(np.float64)
    return float(shares @ values[rows.cond[sample]] + (1 - shares.sum()) * values[rows.uncond[sample]])


def test_a_guided_and_an_unguided_sample() -> None:
    rows = BatchRows.of([TextConditioning((A,), U), TextConditioning((B,))])
    assert [array is expected for array, expected in zip(rows.texts, (U, A, B), strict=True)] == [True] * 3
    assert rows.row.tolist() == [0, 0, 1]
    assert rows.uncond.tolist() == [0, 2]
    assert rows.cond.tolist() == [[1], [2]]
    assert rows.shares.tolist() == [[1], [1]]
    assert rows.dims == {"R": 3, "P": 1, "L": 2}
    assert [array.dtype.name for array in (rows.row, rows.cond, rows.shares)] == ["int64", "int64", "float32"]


def test_samples_of_fewer_prompts_are_filled_up_with_rows_of_their_own() -> None:
    samples = [
        TextConditioning((A,)),
        TextConditioning((A, B, C), U, (0.5, 0.25, -1)),
        TextConditioning((B,), U),
        TextConditioning((A, B), None, (0.5, 0.5)),
    ]
    rows = BatchRows.of(samples)
    assert rows.dims == {"R": 9, "P": 3, "L": 2}
    for index in range(len(samples)):
        own = set(np.flatnonzero(rows.row == index).tolist())
        assert {*rows.cond[index].tolist(), rows.uncond[index]} <= own
    values = np.random.default_rng(0).standard_normal(9)
    expected = [
        values[0],
        values[1] + 0.5 * (values[2] - values[1]) + 0.25 * (values[3] - values[1]) - (values[4] - values[1]),
        values[6],
        (values[7] + values[8]) / 2,
    ]
    found = [combined(rows, index, values) for index in range(len(samples))]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_text_that_stays_is_not_written_again() -> None:
    first = BatchRows.of([TextConditioning((A,), U)])
    held = buffers(first)
    first.write(held, None)
    np.testing.assert_array_equal(held["text"].read(), [U, A])
    held["text"].host[0] = -1
    BatchRows.of([TextConditioning((B,), U)]).write(held, first)
    np.testing.assert_array_equal(held["text"].read(), [np.full_like(U, -1), B])
    BatchRows.of([TextConditioning((B,), U)]).write(held, None)
    np.testing.assert_array_equal(held["text"].read(), [U, B])


def test_sizes_that_stay_may_hold_other_rows() -> None:
    """Of two samples one stops being guided as the other begins."""
    first = BatchRows.of([TextConditioning((A,), U), TextConditioning((B,))])
    then = BatchRows.of([TextConditioning((A,)), TextConditioning((B,), U)])
    assert first.dims == then.dims
    held = buffers(first)
    first.write(held, None)
    then.write(held, first)
    np.testing.assert_array_equal(held["text"].read(), [A, U, B])
    assert held["row"].read().tolist() == [0, 1, 1]
    assert held["uncond"].read().tolist() == [0, 1]
    assert held["cond"].read().tolist() == [[0], [2]]


@pytest.mark.parametrize(("lengths", "longest"), [((1, 2), 2), ((2, 6, 3), 6), ((2, 3), 6)])
def test_shorter_texts_are_repeated_whole(lengths: tuple[int, ...], longest: int) -> None:
    texts = [text(index, tokens) for index, tokens in enumerate(lengths)]
    rows = BatchRows.of([TextConditioning((array,)) for array in texts])
    assert rows.length == longest
    held = buffers(rows)
    rows.write(held, None)
    for found, array in zip(held["text"].read(), texts, strict=True):
        np.testing.assert_array_equal(found, np.concatenate([array] * (longest // len(array))))
