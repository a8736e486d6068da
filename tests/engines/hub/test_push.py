from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from sd2rt.engines.bundle.manifest import MANIFEST, read_manifest

from ..paper_bundle import OLD, make_bundle
from .hub_server import TOKEN, LocalHub, Repo
from .machine import Machine, contents

NAME = "user/paper"


def _files(hub: LocalHub, branch: str = "main") -> dict[str, bytes]:
    repo = hub.repos[NAME]
    return repo.commits[repo.branches[branch]]


def test_a_bundle_is_pushed_with_a_card_and_pulled_elsewhere(
    machine: Machine, make_machine: Callable[[str], Machine], hub: LocalHub, paper: Path
) -> None:
    ended = machine.run("push", paper, NAME, HF_TOKEN=TOKEN)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{hub.endpoint}/{NAME}/commit/{hub.repos[NAME].branches['main']}\n"
    there = _files(hub)
    card = there["README.md"].decode()
    assert card.startswith("---\nlicense: apache-2.0\nlibrary_name: sd2rt\npipeline_tag: text-to-image\n")
    assert "| kind | base |" in card
    assert "| licence | Apache-2.0 |" in card
    assert {path: there[path] for path in contents(paper)} == contents(paper)
    assert not [line for line in hub.asked if "telemetry" in line or "agent" in line]
    other = make_machine("other")
    assert other.run("pull", NAME).returncode == 0
    assert read_manifest(other.cache / "bundles" / "paper").identity == read_manifest(paper).identity


def test_an_interrupted_push_sends_only_what_is_missing(machine: Machine, hub: LocalHub, paper: Path) -> None:
    hub.refused_uploads = 1
    assert "does not allow this" in machine.refused(3, "push", paper, NAME, HF_TOKEN=TOKEN)
    first = list(hub.uploaded)
    hub.uploaded.clear()
    assert machine.run("push", paper, NAME, HF_TOKEN=TOKEN).returncode == 0
    assert not set(first) & set(hub.uploaded)
    assert len(first) + len(hub.uploaded) == len(set(first) | set(hub.uploaded))


def test_a_push_replaces_a_bundle_and_keeps_other_files_and_cards(
    machine: Machine, hub: LocalHub, paper: Path
) -> None:
    assert machine.run("push", paper, NAME, HF_TOKEN=TOKEN).returncode == 0
    hub.repos[NAME].commit({**_files(hub), "denoiser/stale.onnx": b"old", "sample.png": b"p"})
    make_bundle(paper, OLD, replace=True)
    assert machine.run("push", paper, NAME, HF_TOKEN=TOKEN).returncode == 0
    assert "denoiser/stale.onnx" not in _files(hub)
    assert _files(hub)["sample.png"] == b"p"
    assert json.loads(_files(hub)[MANIFEST])["build_key"] == OLD
    own = b"---\nlicense: mit\n---\nMy model.\n"
    hub.repos[NAME].commit({**_files(hub), "README.md": own})
    ended = machine.run("push", paper, NAME, HF_TOKEN=TOKEN)
    assert ended.returncode == 0
    assert "note: user/paper has a README.md of its own" in ended.stderr
    assert _files(hub)["README.md"] == own


def test_a_checkpoint_in_the_repository_stays(machine: Machine, hub: LocalHub, paper: Path) -> None:
    hub.repos[NAME] = Repo()
    hub.repos[NAME].commit({"text_encoder/model.safetensors": b"w"})
    assert machine.run("push", paper, NAME, HF_TOKEN=TOKEN).returncode == 0
    assert _files(hub)["text_encoder/model.safetensors"] == b"w"


def test_a_branch_is_made(machine: Machine, hub: LocalHub, paper: Path) -> None:
    assert machine.run("push", paper, f"{NAME}@v2", "--private", HF_TOKEN=TOKEN).returncode == 0
    assert hub.repos[NAME].private
    assert MANIFEST in _files(hub, "v2")
    assert MANIFEST not in _files(hub)


def test_each_refusal_has_its_own_line(machine: Machine, hub: LocalHub, paper: Path) -> None:
    assert "hf auth login" in machine.refused(3, "push", paper, NAME)
    assert "refuses this user's token" in machine.refused(3, "push", paper, NAME, HF_TOKEN="hf_wrong")
    assert "does not allow this in other/paper" in machine.refused(
        3, "push", paper, "other/paper", HF_TOKEN=TOKEN
    )
    assert "HF_HUB_OFFLINE" in machine.refused(3, "push", paper, NAME, HF_TOKEN=TOKEN, HF_HUB_OFFLINE="1")
    line = machine.refused(3, "push", paper, NAME, HF_TOKEN=TOKEN, HF_ENDPOINT="http://127.0.0.1:9")
    assert "cannot be reached" in line
    machine.refused(2, "push", paper, "paper", HF_TOKEN=TOKEN)
    machine.refused(3, "push", "missing", NAME, HF_TOKEN=TOKEN)
    (paper / "denoiser" / "model.onnx").write_bytes(b"x")
    machine.refused(3, "push", paper, NAME, HF_TOKEN=TOKEN)
    assert hub.uploaded == []
