from __future__ import annotations

import re
import warnings

import numpy as np
import pytest

from sd2rt.runtime.denoising.guidance import plan_guidance, unguided
from sd2rt.runtime.prompts.text_conditioning import TextConditioning

LEVELS = (14.6, 6.0, 3.0, 1.0, 0.3)
COND, OTHER, UNCOND = (np.full((77, 8), value, np.float32) for value in (1, 2, 3))
PLAIN = TextConditioning((COND,), UNCOND)


def scales(*knots: float, calls: int = 5) -> list[float]:
    actual: list[float] = plan_guidance(knots, 0.0, None, (1.0,) * calls).values[:, 0].tolist()
    return actual


def test_one_scale_is_every_calls() -> None:
    guidance = plan_guidance(7.5, 0.7, None, LEVELS)
    assert guidance.values.dtype == np.float32
    np.testing.assert_array_equal(guidance.values, np.array([[7.5, 0.7]] * 5, np.float32))
    assert guidance.guided == (True,) * 5


def test_scales_are_spread_over_the_calls() -> None:
    assert scales(9, 5) == [9, 8, 7, 6, 5]
    assert scales(9, 5, 9) == [9, 7, 5, 7, 9]
    assert scales(9, 4, calls=1) == [9]
    assert scales(8) == [8] * 5


def test_as_many_scales_as_calls_are_one_each() -> None:
    for calls in (2, 3, 7, 13, 51):
        values = np.random.default_rng(calls).uniform(1.5, 12, calls).astype(np.float32).tolist()
        assert scales(*values, calls=calls) == values


@pytest.mark.parametrize("scale", [1.0, 0.0, -3.0, (1.0, 0.5), (0.0, 1.0), (0.0,)])
def test_a_scale_of_one_or_less_guides_nothing(scale: float | tuple[float, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guidance = plan_guidance(scale, 0.7, (0.5, 2), LEVELS)
    assert guidance.guided == (False,) * 5
    np.testing.assert_array_equal(guidance.values, [[1, 0]] * 5)


def test_a_scale_above_one_guides() -> None:
    assert plan_guidance(1.01, 0.0, None, LEVELS).guided == (True,) * 5
    assert plan_guidance((0, 1, 1.5), 0.0, None, LEVELS).guided == (False, False, False, True, True)


def test_a_ramp_to_nothing_stops_guiding_where_it_reaches_one() -> None:
    guidance = plan_guidance((3, -1), 0.5, None, LEVELS)
    assert guidance.values.tolist() == [[3, 0.5], [2, 0.5], [1, 0], [1, 0], [1, 0]]
    assert guidance.guided == (True, True, False, False, False)


def test_an_interval_is_open_below_and_closed_above() -> None:
    guidance = plan_guidance(5, 0.7, (1.0, 6.0), LEVELS)
    assert guidance.guided == (False, True, True, False, False)
    np.testing.assert_array_equal(guidance.values[[0, 3, 4]], [[1, 0]] * 3)
    np.testing.assert_array_equal(guidance.values[1:3], np.array([[5, 0.7]] * 2, np.float32))
    assert plan_guidance(5, 0, (0, np.inf), (np.inf, *LEVELS)).guided == (True,) * 6


def test_an_interval_between_the_levels_warns() -> None:
    message = (
        "no step is guided: the guidance interval is 20 to 30, "
        "but the steps' noise levels are 14.6, 6, 3, 1, 0.3"
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        assert not any(plan_guidance(5, 0, (20, 30), LEVELS).guided)


def test_an_interval_needs_levels() -> None:
    with pytest.raises(ValueError, match="plan with noise levels"):
        plan_guidance(5, 0, (1, 2), (3.0, np.nan))


def test_texts_lose_a_row_where_a_call_is_not_guided_and_stay_one_object_else() -> None:
    other = TextConditioning((OTHER,), UNCOND)
    applied = plan_guidance(5, 0, (1.0, 6.0), LEVELS).apply((PLAIN, PLAIN, other, PLAIN, PLAIN))
    assert [texts.rows for texts in applied] == [1, 2, 2, 1, 1]
    assert applied[1] is PLAIN
    assert applied[2] is other
    assert applied[0] is applied[3] is applied[4]
    assert applied[0].conds == (COND,)
    assert applied[0].uncond is None


def test_a_composition_keeps_its_rows() -> None:
    """At scale 1 it is m_u + sum_p shares_p (m_p - m_u); m_u cancels only for a single prompt of share 1."""
    composed = TextConditioning((COND, OTHER), UNCOND, (0.6, 0.4))
    for texts in (composed, TextConditioning((COND,), UNCOND, (0.6,)), TextConditioning((COND,))):
        assert unguided(texts) is texts
