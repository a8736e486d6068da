from __future__ import annotations

import pytest

from sd2rt.engines.errors import RequestError
from sd2rt.engines.interface import Device


@pytest.mark.parametrize(
    ("text", "kind", "index", "name"),
    [("cpu", "cpu", 0, "cpu"), ("cuda", "cuda", 0, "cuda:0"), ("cuda:13", "cuda", 13, "cuda:13")],
)
def test_device(text: str, kind: str, index: int, name: str) -> None:
    device = Device(text)
    assert (device.kind, device.index, str(device)) == (kind, index, name)


@pytest.mark.parametrize(
    "text", ["", "gpu", "CPU", "cpu:0", "cuda:", "cuda:-1", "cuda:1.5", "cuda:٣", "cuda:1\n", " cpu"]
)
def test_what_is_no_device(text: str) -> None:
    with pytest.raises(RequestError, match="is not a device: use cpu, cuda or cuda:N"):
        Device(text)
