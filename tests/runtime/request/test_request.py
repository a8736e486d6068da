from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.request.request import make_request


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, 7),
        (np.float32(2.5), 2.5),
        ([9, 3], (9, 3)),
        ((9.0, 3, 5), (9.0, 3, 5)),
        (np.array([4.0, 2.0]), (4.0, 2.0)),
        ([7.5], 7.5),
        (None, None),
    ],
)
def test_guidance_scales(value: Any, expected: Any) -> None:
    scale = make_request(prompt="a", guidance_scale=value).guidance_scale
    assert scale == expected
    assert type(scale) is type(expected) or isinstance(scale, float)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((0.3, 5), (0.3, 5)),
        ([0, 1], (0, 1)),
        ((0.28, None), (0.28, math.inf)),
        ((1, math.inf), (1, math.inf)),
    ],
)
def test_guidance_intervals(value: Any, expected: tuple[float, float]) -> None:
    assert make_request(prompt="a", guidance_interval=value).guidance_interval == expected


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"guidance_scale": math.inf}, "guidance_scale is inf: use a finite number"),
        ({"guidance_scale": np.float32("nan")}, "guidance_scale is .*nan.*: use a finite number"),
        ({"guidance_scale": "9"}, "guidance_scale is '9': use a number"),
        ({"guidance_scale": True}, "guidance_scale is True: use a number"),
        ({"guidance_scale": {9: 3}}, "guidance_scale is {9: 3}: use a number"),
        ({"guidance_scale": []}, r"guidance_scale is \[\]: use one or more finite numbers"),
        ({"guidance_scale": [9, math.nan]}, r"guidance_scale is \[9, nan\]: use one or more finite numbers"),
        ({"guidance_scale": [9, None]}, r"guidance_scale is \[9, None\]: use one or more finite numbers"),
        ({"guidance_scale": [9, "3"]}, r"guidance_scale is \[9, '3'\]: use a number"),
        ({"guidance_scale": [[9, 3]]}, r"guidance_scale is \[\[9, 3\]\]: use a number"),
        ({"guidance_interval": 3}, "guidance_interval is 3: use two noise levels"),
        ({"guidance_interval": "03"}, "guidance_interval is '03': use two noise levels"),
        ({"guidance_interval": (1, 2, 3)}, r"guidance_interval is \(1, 2, 3\): use two noise levels"),
        ({"guidance_interval": (5, 0.3)}, "the lower one first"),
        ({"guidance_interval": (2, 2)}, "the lower one first"),
        ({"guidance_interval": (-1, 2)}, "of at least 0"),
        ({"guidance_interval": (math.nan, 2)}, "of at least 0"),
        ({"guidance_interval": (None, 2)}, "of at least 0"),
        ({"guidance_interval": ("1", "2")}, "use a number"),
    ],
)
def test_bad_guidance_is_one_line(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        make_request(prompt="a", **fields)
    assert "\n" not in str(caught.value)
