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
    """Conditional prediction m_c of a sample, if the network's outputs for the rows are ``values``."""
    shares = rows.shares[sample].astype(np.float64)
    return float(shares @ values[rows.cond[sample]] + (1 - shares.sum()) * values[rows.uncond[sample]])


def test_a_guided_and_an_unguided_sample() -> None:
    rows = BatchRows.from_samples([TextConditioning((A,), U), TextConditioning((B,))])
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
    rows = BatchRows.from_samples(samples)
    assert rows.dims == {"R": 9, "P": 3, "L": 2}
    for index in range(len(samples)):
        own_rows = set(np.flatnonzero(rows.row == index).tolist())
        assert {*rows.cond[index].tolist(), rows.uncond[index]} <= own_rows
    values = np.random.default_rng(0).standard_normal(9)
    expected = [
        values[0],
        values[1] + 0.5 * (values[2] - values[1]) + 0.25 * (values[3] - values[1]) - (values[4] - values[1]),
        values[6],
        (values[7] + values[8]) / 2,
    ]
    actual = [combined(rows, index, values) for index in range(len(samples))]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_a_text_that_stays_is_not_written_again() -> None:
    first = BatchRows.from_samples([TextConditioning((A,), U)])
    session_buffers = buffers(first)
    first.write(session_buffers, None)
    np.testing.assert_array_equal(session_buffers["text"].read(), [U, A])
    session_buffers["text"].host[0] = -1
    BatchRows.from_samples([TextConditioning((B,), U)]).write(session_buffers, first)
    np.testing.assert_array_equal(session_buffers["text"].read(), [np.full_like(U, -1), B])
    BatchRows.from_samples([TextConditioning((B,), U)]).write(session_buffers, None)
    np.testing.assert_array_equal(session_buffers["text"].read(), [U, B])


def test_sizes_that_stay_may_hold_other_rows() -> None:
    """One of two samples stops being guided as the other begins."""
    first = BatchRows.from_samples([TextConditioning((A,), U), TextConditioning((B,))])
    then = BatchRows.from_samples([TextConditioning((A,)), TextConditioning((B,), U)])
    assert first.dims == then.dims
    session_buffers = buffers(first)
    first.write(session_buffers, None)
    then.write(session_buffers, first)
    np.testing.assert_array_equal(session_buffers["text"].read(), [A, U, B])
    assert session_buffers["row"].read().tolist() == [0, 1, 1]
    assert session_buffers["uncond"].read().tolist() == [0, 1]
    assert session_buffers["cond"].read().tolist() == [[0], [2]]


@pytest.mark.parametrize(("lengths", "longest"), [((1, 2), 2), ((2, 6, 3), 6), ((2, 3), 6)])
def test_shorter_texts_are_repeated_whole(lengths: tuple[int, ...], longest: int) -> None:
    texts = [text(index, tokens) for index, tokens in enumerate(lengths)]
    rows = BatchRows.from_samples([TextConditioning((array,)) for array in texts])
    assert rows.length == longest
    session_buffers = buffers(rows)
    rows.write(session_buffers, None)
    for actual, array in zip(session_buffers["text"].read(), texts, strict=True):
        np.testing.assert_array_equal(actual, np.concatenate([array] * (longest // len(array))))


def test_padding_depends_on_no_sample_and_no_sample_on_it() -> None:
    samples = [TextConditioning((A, B), U, (0.5, 0.25)), TextConditioning((C,))]
    exact = BatchRows.from_samples(samples)
    rows = exact.padded({"B": 4, "R": 7, "P": 3, "L": 4})
    assert rows.dims == {"R": 7, "P": 3, "L": 4}
    for index in range(4):
        own = set(np.flatnonzero(rows.row == min(index, 2)).tolist())
        assert {*rows.cond[index].tolist(), rows.uncond[index]} <= own
    assert rows.shares[2:].tolist() == [[0, 0, 0]] * 2
    values = np.random.default_rng(0).standard_normal(7)
    for index in range(2):
        np.testing.assert_allclose(combined(rows, index, values), combined(exact, index, values), rtol=1e-6)
    session_buffers = buffers(rows)
    rows.write(session_buffers, None)
    np.testing.assert_array_equal(session_buffers["text"].read()[:4], np.tile([U, A, B, C], (1, 2, 1)))


def test_rows_of_padding_without_a_sample_of_padding() -> None:
    rows = BatchRows.from_samples([TextConditioning((A,), U), TextConditioning((B,))])
    padded = rows.padded({"B": 2, "R": 4, "P": 1, "L": 2})
    assert padded.row.tolist() == [0, 0, 1, 1]
    assert padded.uncond.tolist() == [0, 2]
    assert padded.cond.tolist() == [[1], [2]]
    session_buffers = buffers(padded)
    padded.write(session_buffers, None)
    # Fewer texts were known before than there are now.
    further = BatchRows.from_samples([TextConditioning((A,), U), TextConditioning((B,), C)])
    further.write(session_buffers, padded)
    np.testing.assert_array_equal(session_buffers["text"].read(), [U, A, C, B])
