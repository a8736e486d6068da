"""LoRA files: hashes, alphas, names and scales, and the files that are refused."""

from __future__ import annotations

import collections
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from sd2rt.engines.errors import RequestError
from sd2rt.engines.lora.file import named_loras, read_lora

from ...lora_files import ATTENTION, draw, write
from .small_networks import NETWORKS


def refusal(path: Path) -> str:
    with pytest.raises(RequestError) as caught:
        read_lora(path)
    said = str(caught.value)
    assert "\n" not in said
    return said.replace(f"{path} ", "", 1)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"12345")
    assert refusal(tmp_path / "a.safetensors") == "cannot be read (it has no header): get the file again"
    (tmp_path / "a.pt").write_bytes(b"")
    assert "is not a .safetensors file" in refusal(tmp_path / "a.pt")
    (tmp_path / "b.safetensors").mkdir()
    assert "is a folder: use the LoRA's" in refusal(tmp_path / "b.safetensors")
    save_file({}, tmp_path / "a.safetensors")
    assert refusal(tmp_path / "a.safetensors") == "has no tensors: get the file again"
    for scale in (float("nan"), float("inf"), True, "1"):
        with pytest.raises(RequestError, match=r"the scale of .* is .*: use a finite number"):
            read_lora(tmp_path / "a.safetensors", scale=scale)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "is in PEFT's layout, whose alpha is in .*adapter_config.json, which cannot be read"),
        ("[]", "adapter_config.json is not a JSON object"),
        (
            '{"peft_type": "OFT"}',
            "is of the type 'OFT', which is not supported: use one of LORA, LOHA, LOKR or IA3",
        ),
        ('{"use_dora": true}', "lacks the norms of unet.down_blocks.* though it is a DoRA"),
        ('{"lora_alpha": "8"}', "lora_alpha is '8', expected a number"),
        ('{"lora_alpha": NaN}', "lora_alpha is 'nan'"),
        ('{"alpha_pattern": [1]}', "alpha_pattern is not a JSON object"),
        ('{"alpha_pattern": {"(a|b": 1}}', "is not a regular expression without lookarounds"),
        (r'{"alpha_pattern": {"(a)\\1": 1}}', "is not a regular expression without lookarounds"),
        ('{"rank_pattern": {"to_q": 0}}', "rank_pattern holds 0"),
        ('{"r": 0}', "r is 0, expected a number above 0"),
    ],
)
def test_configurations_that_are_refused(tmp_path: Path, config: str | None, said: str) -> None:
    path = write(tmp_path / "a.safetensors", "peft", draw({"unet": ATTENTION["unet"]}, NETWORKS))
    beside = tmp_path / "adapter_config.json"
    beside.unlink()
    if config is not None:
        beside.write_text(config)
    with pytest.raises(RequestError, match=said):
        read_lora(path)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles(tmp_path: Path, suffix: str, zipped: bool) -> None:
    """Attention processors as diffusers saved them in 2023, by torch.save: the same as in a safetensors file."""
    torch = pytest.importorskip("torch")
    from safetensors.numpy import load_file

    safe = write(tmp_path / "a.safetensors", "diffusers-old", draw(ATTENTION, NETWORKS))
    state = collections.OrderedDict((key, torch.from_numpy(value)) for key, value in load_file(safe).items())
    state._metadata = collections.OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    path = tmp_path / f"pytorch_lora_weights{suffix}"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    actual, expected = read_lora(path, allow_pickle=True), read_lora(safe)
    assert actual.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert set(actual.layers) == set(expected.layers)
    for module, change in expected.layers.items():
        weight = np.zeros(change.shape, np.float32)
        np.testing.assert_array_equal(actual.layers[module].delta(1.0, weight), change.delta(1.0, weight))
    assert "a pickle, a format that can carry code: use a .safetensors of the same LoRA, or allow" in refusal(
        path
    )
    [named] = named_loras([f"{path}:0.5"], allow_pickle=True)
    assert (named.name, named.scale) == ("pytorch_lora_weights", 0.5)


class Code:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("content", "said"), [({"a": Code()}, "holds more than tensors"), ([1], "holds a list")]
)
def test_pickles_of_other_things(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, said: str
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    torch.save(content, "a.bin")
    with pytest.raises(RequestError, match=said):
        read_lora("a.bin", allow_pickle=True)
    assert not Path("ran").exists()


def test_hashes(tmp_path: Path) -> None:
    """PEFT's alphas, in a file of their own, are part of the hash."""
    factors = draw({"unet": ATTENTION["unet"]}, NETWORKS)
    path = write(tmp_path / "a.safetensors", "kohya", factors)
    assert read_lora(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    path = write(tmp_path / "a.safetensors", "peft", factors)
    first = read_lora(path).sha256
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 7}')
    assert read_lora(path).sha256 != first


def test_files_with_scales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    factors = draw({"unet": ATTENTION["unet"]}, NETWORKS)
    for name in ("toy", "a:b", "c:0.5", "sub/toy"):
        write(Path(f"{name}.safetensors"), "kohya", factors)
    Path("c:0.5.safetensors").rename("c.safetensors:0.5")
    read = named_loras(["toy.safetensors:-0.5", "a:b.safetensors", "sub/toy.safetensors:2"])
    assert [(lora.name, lora.scale) for lora in read] == [
        ("toy.safetensors", -0.5),
        ("a:b", 1.0),
        ("sub/toy.safetensors", 2.0),
    ]
    # An existing file is a file, even if its name ends like a scale.
    with pytest.raises(RequestError, match=r"c\.safetensors:0\.5 is not a \.safetensors file"):
        named_loras(["c.safetensors:0.5"])
    with pytest.raises(RequestError, match=r"toy\.safetensors:x cannot be read|is not a \.safetensors"):
        named_loras(["toy.safetensors:x"])
    same = named_loras(["toy.safetensors", "./toy.safetensors"])
    assert [lora.name for lora in same] == ["toy.safetensors", "./toy.safetensors"]


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_arbitrary_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "arbitrary.safetensors"
    path.write_bytes(data)
    with pytest.raises(RequestError):
        read_lora(path)
