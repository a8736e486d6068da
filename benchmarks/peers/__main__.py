"""sd2rt and its peers on one checkpoint, taking turns: images compared, then times as ratios.

    python -m benchmarks.peers [--steps 4] [--pairs 3] [--output]     full size, 35 GB of disk with all peers
    python -m benchmarks.peers --small                                a tiny network, in minutes
    python -m benchmarks.peers --checkpoint FOLDER --bundle BUNDLE --peers sd2rt diffusers openvino
    python -m benchmarks.peers --with 'sd2rt-max-batch={"max_batch": 4}'

``python -m pydoc benchmarks.peers`` says how to install the peers.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import catalogue, findings, groups, site
from benchmarks.peers.catalogue import PEERS, Peer
from benchmarks.peers.contest import Contest, Settings
from benchmarks.recording import machine, process, report
from benchmarks.recording.work_folder import require_disk

PROMPT = "a photograph of an astronaut riding a horse"
FULL_CONFIGS = "stable-diffusion-2-base"


def main() -> None:
    options = _parser().parse_args()
    try:
        peers = _chosen(options)
        pythons = _pythons(options.python, peers)
        if options.groups is not None:
            groups.asked(options.groups, peers)
    except ValueError as error:
        sys.exit(str(error))
    if options.list:
        print(report.table(("name", "what", "precision"), ((p.name, p.label, p.precision) for p in peers)))
        return
    kept = options.workdir is not None
    folder = options.workdir or Path(tempfile.mkdtemp(prefix="sd2rt-peers-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if options.what == "full" and options.checkpoint is None and not kept:
            require_disk(folder, site.FULL_BYTES)
        result = _measure(peers, pythons, options, folder.resolve())
    finally:
        if not kept:
            shutil.rmtree(folder)
    for line in (
        *findings.remarks(result["peers"], result["reference"]),
        *findings.crowds(result["crowded"]),
    ):
        print(line)
    report.finish(result, findings.COLUMNS, findings.rows(result["peers"]), options.output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0])
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="all, if left out; --list names them")
    parser.add_argument("--list", action="store_true", help="name the peers and end")
    parser.add_argument("--device", choices=tuple(PEERS), default="cpu")
    parser.add_argument(
        "--with", action="append", default=[], dest="variants", metavar="NAME=JSON",
        help="a further sd2rt, with these arguments of Pipeline.open",
    )  # fmt: skip
    parser.add_argument(
        "--python", action="append", default=[], metavar="NAME=PATH",
        help="the interpreter of a peer; * in NAME stands for anything",
    )  # fmt: skip
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--small", action="store_const", const="small", dest="what", help="a tiny network")
    what.add_argument("--demo", action="store_const", const="demo", dest="what", help="the demo's network")
    parser.set_defaults(what="full")
    parser.add_argument("--configs", help="a folder of export/configs, for another full size")
    parser.add_argument("--checkpoint", type=Path, help="a diffusers folder; random weights if left out")
    parser.add_argument("--bundle", type=Path, help="the bundle of that checkpoint; built if left out")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=3, help="rounds, in which each peer makes an image")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", type=int, help="side of the images; the checkpoint's own if left out")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    together = parser.add_mutually_exclusive_group()
    together.add_argument("--together", type=int, help="processes that are open at the same time, at most")
    together.add_argument(
        "--groups",
        nargs="+",
        metavar="NAME,NAME",
        help="who is open at the same time: with both of sd2rt and diffusers, or with those that are named",
    )
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds that an answer may take")
    parser.add_argument("--images", type=Path, help="keep each peer's image in this folder, as NAME.npy")
    parser.add_argument(
        "--workdir", type=Path,
        help="where files go, and are found by the next run; a temporary folder if left out",
    )  # fmt: skip
    report.add_output(parser)
    return parser


def _chosen(options: argparse.Namespace) -> list[Peer]:
    if options.bundle is not None and options.checkpoint is None:
        raise ValueError("--bundle needs its --checkpoint")
    if options.steps < 2 or options.pairs < 1 or options.threads < 1:
        raise ValueError("give at least 2 --steps, 1 round of --pairs and 1 of --threads")
    added = []
    for text in options.variants:
        name, equals, value = text.partition("=")
        if not equals or not isinstance(told := json.loads(value), dict):
            raise ValueError(f'--with {text}: give NAME={{"argument": value}}')
        added.append(catalogue.variant(name, told))
    known = {peer.name: peer for peer in (*PEERS[options.device], *added)}
    names = list(known) if options.peers is None else [*options.peers, *(peer.name for peer in added)]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"there is no peer {', '.join(unknown)}: there are {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def _pythons(given: Sequence[str], peers: Sequence[Peer]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        named = fnmatch.filter([peer.name for peer in peers], name)
        if not equals or not named:
            raise ValueError(f"--python {text}: give NAME=PATH, NAME one of the peers'")
        # Workers start in the repository, wherever this was started.
        found |= dict.fromkeys(named, os.path.abspath(path) if os.sep in path else path)
    return found


def _measure(
    peers: Sequence[Peer], pythons: dict[str, str], options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    facts = machine.facts()
    env = process.environment(folder)
    configs = options.configs or {"full": FULL_CONFIGS}.get(options.what, options.what)
    place = site.settle(
        folder,
        configs,
        env,
        checkpoint=options.checkpoint,
        bundle=options.bundle,
        precision="fp16" if options.device == "cuda" else "fp32",
    )
    jobs = {peer.name: place.job(peer, options.prompt, options.size, options.threads) for peer in peers}
    with tempfile.TemporaryDirectory(prefix="sd2rt-peers-run-") as name:
        scratch = Path(name)
        images = options.images
        if images is not None:
            images.mkdir(parents=True, exist_ok=True)
            images = images.resolve()
        settings = Settings(
            steps=options.steps, pairs=options.pairs, seed=options.seed, pythons=pythons,
            env=_environment(env, options.threads, scratch), scratch=scratch,
            limit_seconds=options.limit, images=images,
        )  # fmt: skip
        contest = Contest(jobs, peers, settings)
        able = contest.prepare()
        if options.groups is not None:
            together = groups.asked(options.groups, peers)
        else:
            together = groups.form(able, place.weights_bytes, groups.free_bytes(), options.together)
        contest.run(together)
    job = jobs[peers[0].name]
    return {
        "benchmark": f"peers-{options.what}" + ("-gpu" if options.device == "cuda" else ""),
        "configs": configs if options.checkpoint is None else "given",
        "size": [job.width, job.height],
        "steps": options.steps,
        "pairs": options.pairs,
        "seed": options.seed,
        "threads": options.threads,
        "prompt": options.prompt,
        "scheduler": json.loads((place.checkpoint / "scheduler/scheduler_config.json").read_text())[
            "_class_name"
        ],
        "reference": contest.reference,
        "groups": together,
        "crowded": contest.crowded,
        "peers": findings.peers(contest.found),
        "others_cpu_seconds": round(contest.others_cpu_seconds, 2),
        "machine": facts,
        "load_average_after": machine.load_average(),
    }


def _environment(env: dict[str, str], threads: int, scratch: Path) -> dict[str, str]:
    """The same threads for every library, and a compiler's cache that knows nothing yet."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return env | counts | {"TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor")}


if __name__ == "__main__":
    main()
