"""Engine files: refusals, profiles and sessions, on a simulated GPU and a simulated TensorRT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sd2rt.engines.bundle.open_files import plain_file
from sd2rt.engines.bundle.schema import Part
from sd2rt.engines.errors import BundleError, EngineError

from ..simulated_tensorrt import make_tensorrt
from .engine_bench import DIMS, SIZES, WIDE, Bench, decode


@pytest.mark.parametrize("damage", ["bit", "cut", "longer", "missing", "link", "folder"])
def test_altered_file_is_never_deserialised(bench: Bench, damage: str) -> None:
    entry = bench.build()
    path = bench.path(entry)
    content = path.read_bytes()
    path.unlink()
    if damage == "bit":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "longer":
        path.write_bytes(content + b"\0")
    elif damage == "link":
        (bench.folder / "elsewhere").write_bytes(content)
        path.symlink_to(bench.folder / "elsewhere")
    elif damage == "folder":
        path.mkdir()
    assert str(path) in bench.refused(entry)
    assert bench.gpu.counts["deserialize"] == 0


def test_file_that_changes_after_its_size_was_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash covers exactly the bytes that are deserialised."""
    entry = bench.build()
    path = bench.path(entry)
    looked = plain_file

    def change(*given: Any) -> Any:
        status = looked(*given)
        path.write_bytes(path.read_bytes() + b" ")
        return status

    monkeypatch.setattr("sd2rt.engines.tensorrt.engine.plain_file", change)
    assert "has sha256" in bench.refused(entry)
    assert bench.gpu.counts["deserialize"] == 0


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            {"version": "11.4.0.99"},
            "was built by tensorrt 11.4.0.99 and runs in that version only, this is 11.4.0.106",
        ),
        ({"version": "12.0", "version_compatible": True}, "runs in that version only, this is 11.4.0.106"),
        ({"platform": "linux-aarch64"}, "was built for linux-aarch64, this is linux-"),
        ({"compute_capabilities": ("8.6", "8.0")}, "was built for sm_80, sm_86, this GPU is sm_90"),
        (
            {"compute_capabilities": ("12.0",), "hardware_compatible": True},
            "built for sm_120, this GPU is sm_90",
        ),
    ],
)
def test_engine_of_another_version_or_gpu(bench: Bench, entry: dict[str, Any], said: str) -> None:
    message = bench.refused(bench.build(**entry))
    assert said in message
    assert message.endswith(f"build it with 'sd2rt build {bench.folder} --engines-only --backend tensorrt'")
    assert bench.gpu.counts["deserialize"] == 0


def test_engine_that_runs_elsewhere_too(bench: Bench) -> None:
    entry = bench.build(compute_capabilities=("8.0",), hardware_compatible=True)
    with bench.open(entry) as engine:
        assert np.isfinite(decode(engine)).all()


def test_engine_that_the_backend_refuses(bench: Bench) -> None:
    """The message has the first error, in one line."""
    other = make_tensorrt(bench.gpu, "tensorrt_rtx")
    message = bench.refused(bench.build(module=other, version=bench.module.__version__))
    assert (
        "was refused by tensorrt 11.4.0.106 (IRuntime::deserializeCudaEngine: Error Code 1: Serialization"
        in message
    )
    assert "(engine of tensorrt_rtx))" in message
    assert "what follows" not in message


def test_engine_that_does_not_fit_the_device(bench: Bench) -> None:
    entry = bench.build(plan={"refused": "Error Code 2: OutOfMemory (Requested size was 3 bytes)"})
    with pytest.raises(EngineError, match=r"cannot be loaded on cuda:0: out of memory: .*1\.00 GiB .* free"):
        bench.open(entry)


@pytest.mark.parametrize("share", [0.9, 1.1])
def test_engine_gets_what_the_pool_keeps(bench: Bench, share: float) -> None:
    """The pool is trimmed once before a second attempt; an engine that is still too large is an error."""
    bench.device.allocate(bench.gpu.total_bytes // 2, "a size that was").free()
    bench.device.synchronize()
    entry = bench.build(plan={"bytes": int(bench.gpu.free_bytes * share)})
    if share < 1:
        with bench.open(entry) as engine:
            assert np.isfinite(decode(engine)).all()
    else:
        with pytest.raises(EngineError, match="cannot be loaded on cuda:0: out of memory"):
            bench.open(entry)
    assert (bench.gpu.counts["trim"], bench.gpu.counts["deserialize"]) == (1, 2)


def _changed(part: Part, **changes: Any) -> dict[str, Any]:
    described = part.model_dump(mode="json")
    described.update(changes)
    return {"part": described}


@pytest.mark.parametrize("what", ["name", "dtype", "rank", "fixed", "missing", "host", "profile", "profiles"])
def test_engine_of_another_part(bench: Bench, what: str) -> None:
    """The file is intact, but its tensors are not those of the manifest's part."""
    latents = bench.part.inputs[0].model_dump(mode="json")
    profiles = [SIZES, WIDE]
    plans: dict[str, Callable[[], dict[str, Any]]] = {
        "name": lambda: _changed(bench.part, inputs=[{**latents, "name": "other"}]),
        "dtype": lambda: _changed(bench.part, inputs=[{**latents, "dtype": "float16"}]),
        "rank": lambda: _changed(bench.part, inputs=[{**latents, "shape": ["B", 4, "h", "w", 1]}]),
        "fixed": lambda: _changed(bench.part, inputs=[{**latents, "shape": ["B", 9, "h", "w"]}]),
        "missing": lambda: _changed(bench.part, outputs=[]),
        "host": lambda: {"on_host": ["latents"]},
        "profile": lambda: {"profiles": [SIZES, {**WIDE, "B": (1, 1, 3)}]},
        "profiles": lambda: {"profiles": [SIZES]},
    }
    message = bench.refused(bench.build(plan=plans[what](), profiles=profiles))
    assert "its manifest says" in message
    assert "latents" in message or what in ("missing", "profiles")


def test_profiles(bench: Bench) -> None:
    with bench.open(bench.build()) as engine:
        assert decode(engine).shape == (1, 3, 64, 64)
        assert decode(engine, {"B": 2, "h": 8, "w": 16}).shape == (2, 3, 64, 128)
        with pytest.raises(BundleError) as caught:
            engine.session({"B": 3, "h": 8, "w": 16})
    assert str(caught.value) == (
        f"{bench.folder}/decoder/tensorrt.engine was not built for B 3, h 8, w 16, but for profile-0 (B 1 to 4, h 8, "
        f"w 8); profile-1 (B 1 to 2, h 8, w 16): build it with 'sd2rt build {bench.folder} --engines-only "
        "--backend tensorrt --size 128x64 --batch 3'"
    )


def test_sessions_are_kept_and_the_oldest_is_closed(bench: Bench) -> None:
    sizes = {"B": (1, 1, 99), "h": (8, 8, 8), "w": (8, 8, 8)}
    with bench.open(bench.build(profiles=[sizes])) as engine:
        first = engine.session(DIMS)
        assert engine.session(dict(reversed(DIMS.items()))) is first
        for batch in range(2, 17):
            engine.session({**DIMS, "B": batch})
        assert engine.session(DIMS) is first
        oldest = engine.session({**DIMS, "B": 2})
        for batch in (*range(3, 17), 1):
            engine.session({**DIMS, "B": batch})
        held = bench.gpu.free_bytes, bench.gpu.pinned_bytes
        engine.session({**DIMS, "B": 17})
        assert engine.session(DIMS) is first
        with pytest.raises(EngineError, match="is closed: open its engine again"):
            oldest.launch()
        # The memory of the closed session is free again; the new one is only slightly larger.
        assert abs(bench.gpu.free_bytes - held[0]) < 4 << 20
        assert abs(bench.gpu.pinned_bytes - held[1]) < 4 << 20
        assert engine.session({**DIMS, "B": 2}) is not oldest


def test_closed_engine_has_given_everything_back(bench: Bench) -> None:
    engine = bench.open(bench.build())
    before = bench.gpu.free_bytes, bench.gpu.pinned_bytes
    decode(engine)
    session = engine.session(DIMS)
    engine.close()
    with pytest.raises(EngineError, match="decoder on cuda:0 is closed: open it again"):
        engine.session(DIMS)
    with pytest.raises(EngineError, match="is closed: open its engine again"):
        session.launch()
    bench.device.arena.free()
    bench.device.synchronize()
    staging = bench.device._staging
    assert staging is not None
    assert (bench.gpu.free_bytes, bench.gpu.pinned_bytes - staging.nbytes) == before
    engine.close()
