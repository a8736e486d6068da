"""The processor, with actors of a real cluster."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from sd2rt.engines.errors import BundleError, RequestError
from sd2rt.runtime.pipeline.pipeline import Pipeline
from sd2rt.runtime.provenance.watermark import MESSAGE, read
from sd2rt.runtime.ray import drawer as drawer_module
from sd2rt.runtime.ray.config import ProcessorConfig
from sd2rt.runtime.ray.data import ColumnActor, build_processor
from sd2rt.runtime.ray.job import Job
from sd2rt.runtime.rows.drawing import draw_images

FAST = {"steps": 2, "size": "64x64"}


def config(bundle: Path, **values: Any) -> ProcessorConfig:
    return ProcessorConfig.of(bundle=str(bundle), threads=1, **{"options": FAST, **values})


def pixels(data: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_images_are_those_of_a_pipeline(ray_session: Any, small_bundle: Path) -> None:
    rows = [
        {"prompt": "a fox", "seed": 3, "count": 2, "sampler": "euler", "name": "x"},
        {"prompt": "a hen", "seed": 9, "count": None, "sampler": None, "name": "y"},
        {"prompt": "no", "seed": 1, "count": 0, "sampler": None, "name": "z"},
        {"prompt": "nor", "seed": 1, "count": None, "sampler": "no such", "name": "z"},
    ]
    process = build_processor(
        config(small_bundle, batch_size=2, keep=("name",)),
        preprocess=lambda row: row | {"negative": "blue"},
        postprocess=lambda row: row | {"bytes": len(row["image_bytes"] or b"")},
    )
    done = process(ray_session.data.from_items(rows, override_num_blocks=2)).take_all()
    found = {(row["prompt"], row["image_index"]): row for row in done}
    assert {name: row["error"] and row["error"][:12] for name, row in found.items()} == {
        ("a fox", 0): None,
        ("a fox", 1): None,
        ("a hen", 0): None,
        ("no", 0): "--count is 0",
        ("nor", 0): "no sampler i",
    }
    assert found["no", 0]["bytes"] == 0
    assert [found[name]["name"] for name in (("a fox", 1), ("a hen", 0))] == ["x", "y"]
    assert len({row["row_hash"] for row in done}) == 4
    with Pipeline.open(small_bundle, threads=1) as pipe:
        for prompt, number, seed, sampler in (
            ("a fox", 0, 3, "euler"),
            ("a fox", 1, 4, "euler"),
            ("a hen", 0, 9, None),
        ):
            row = found[prompt, number]
            assert row["image_seed"] == seed
            (alone,) = pipe(
                prompt,
                negative_prompt="blue",
                seed=seed,
                num_inference_steps=2,
                width=64,
                height=64,
                sampler=sampler,
            ).images
            np.testing.assert_array_equal(pixels(row["image_bytes"]), np.asarray(alone))


def test_seeds_marks_and_checks(ray_session: Any, small_bundle: Path) -> None:
    """In one job: watermark, no metadata, a check that passes all; and seeds that do not depend on the run."""
    values: dict[str, Any] = {
        "options": {"steps": 1, "size": "256x256"},
        "id_column": "id",
        "watermark": "sdv2",
    }
    values |= {"metadata": False, "safety": "operator:not_", "file_format": "png"}
    process = build_processor(config(small_bundle, **values))
    rows = [{"prompt": "a", "id": 1}, {"prompt": "a", "id": 2}]
    first = process(ray_session.data.from_items(rows)).take_all()
    assert [row["error"] for row in first] == [None, None]
    assert len({row["image_seed"] for row in first}) == 2
    job = Job.of(config(small_bundle, **values))
    actor = ColumnActor(job)

    async def again() -> list[Any]:
        return [table async for table in actor(pa.Table.from_pylist(rows[::-1]))]

    (second, _) = asyncio.run(again())
    by_id = {row["id"]: row for row in first}
    assert second.to_pylist() == [by_id[2]]
    assert read(pixels(by_id[2]["image_bytes"])) == MESSAGE
    assert Image.open(io.BytesIO(by_id[2]["image_bytes"])).info == {}


def test_a_check_refuses_rows_alone(ray_session: Any, small_bundle: Path) -> None:
    process = build_processor(config(small_bundle, safety="builtins:bool"))
    (row,) = process(ray_session.data.from_items([{"prompt": "a"}])).take_all()
    assert row["error"].startswith("the safety check builtins:bool refuses the image")
    assert row["image_bytes"] is None


def test_checkpoints_of_ray_data(ray_session: Any, small_bundle: Path, tmp_path: Path) -> None:
    """Ray Data's own resuming, for datasets that it reads and writes.

    Its filter is an actor with a CPU too, and reading and writing need another: with two, ours must reserve none.
    """
    from pyarrow import parquet
    from ray.data.checkpoint import CheckpointConfig

    (tmp_path / "in").mkdir()
    parquet.write_table(
        pa.table({"prompt": ["a", "b", "c"], "id": [1, 2, 3]}), tmp_path / "in" / "rows.parquet"
    )
    context = ray_session.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        "id", str(tmp_path / "checkpoint"), delete_checkpoint_on_success=False
    )
    try:
        for _ in range(2):
            dataset = ray_session.data.read_parquet(str(tmp_path / "in"))
            process = build_processor(config(small_bundle, id_column="id", num_cpus=0))
            process(dataset).write_parquet(str(tmp_path / "out"))
    finally:
        context.checkpoint_config = None
    written = parquet.read_table(tmp_path / "out")
    assert sorted(written["id"].to_pylist()) == [1, 2, 3]
    assert written["error"].null_count == 3


def test_batches_share_the_stepper(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a second batch are under way while the first has one left: the device does not wait at its end."""
    under_way, most = set(), []

    async def counted(pipeline: Any, requests: Any, stamps: Any) -> Any:
        under_way.add(requests.first.prompt)
        most.append(set(under_way))
        async for found in draw_images(pipeline, requests, stamps):
            yield found
        under_way.discard(requests.first.prompt)

    monkeypatch.setattr(drawer_module, "draw_images", counted)
    actor = ColumnActor(Job.of(config(small_bundle, rows_in_flight=3, batch_size=2)))

    async def both() -> list[list[Any]]:
        async def batch(*prompts: str) -> list[Any]:
            return [table async for table in actor(pa.table({"prompt": list(prompts)}))]

        return list(await asyncio.gather(batch("a", "b"), batch("c", "d")))

    assert [len(tables) for tables in asyncio.run(both())] == [2, 2]
    assert max(map(len, most)) == 3
    assert any({"c"} & now and {"a", "b"} & now for now in most)


def test_what_is_refused(small_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        build_processor(config(tmp_path / "none"))
    with pytest.raises(RequestError, match="there is no option stepz: did you mean steps"):
        build_processor(config(small_bundle, options={"stepz": 1}))
    with pytest.raises(RequestError, match="quality is for jpeg and webp"):
        build_processor(config(small_bundle, quality=3))
    with pytest.raises(RequestError, match="safety check is 'nothing'"):
        build_processor(config(small_bundle, safety="nothing"))


def test_a_bundle_that_actors_cannot_open(ray_session: Any, small_bundle: Path, tmp_path: Path) -> None:
    """The job fails, and Ray's traceback has the line of sd2rt's error."""
    (tmp_path / "bundle").mkdir()
    manifest = tmp_path / "bundle" / "bundle.json"
    manifest.write_bytes((small_bundle / "bundle.json").read_bytes())
    dataset = build_processor(config(tmp_path / "bundle"))(ray_session.data.from_items([{"prompt": "a"}]))
    with pytest.raises(ray_session.exceptions.RayError, match=r"BundleError: .* is missing"):
        dataset.take_all()
