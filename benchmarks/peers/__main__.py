"""Compare sd2rt with its peers on one checkpoint, in turns: images first, then times as ratios.

    python -m benchmarks.peers [--steps 4] [--pairs 3] [--output]     full size, 35 GB of disk with all peers
    python -m benchmarks.peers --small                                a tiny network, in minutes
    python -m benchmarks.peers --checkpoint FOLDER --bundle BUNDLE --peers sd2rt diffusers openvino
    python -m benchmarks.peers --with 'sd2rt-max-batch={"max_batch": 4}'

``python -m pydoc benchmarks.peers`` explains how to install the peers.
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

from benchmarks.peers import catalogue, groups, peer_results, site
from benchmarks.peers.catalogue import PEERS, Peer
from benchmarks.peers.contest import Contest, Settings
from benchmarks.recording import machine, process, report
from benchmarks.recording.work_folder import require_disk

PROMPT = "a photograph of an astronaut riding a horse"
FULL_CONFIGS = "stable-diffusion-2-base"


def main() -> None:
    options = _parser().parse_args()
    try:
        peers = _select_peers(options)
        pythons = _pythons(options.python, peers)
        if options.groups is not None:
            groups.parse(options.groups, peers)
    except ValueError as error:
        sys.exit(str(error))
    if options.list:
        print(
            report.table(
                ("name", "description", "precision"), ((p.name, p.label, p.precision) for p in peers)
            )
        )
        return
    keep = options.workdir is not None
    folder = options.workdir or Path(tempfile.mkdtemp(prefix="sd2rt-peers-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if options.network == "full" and options.checkpoint is None and not keep:
            require_disk(folder, site.FULL_BYTES)
        result = _measure(peers, pythons, options, folder.resolve())
    finally:
        if not keep:
            shutil.rmtree(folder)
    for line in (
        *peer_results.remarks(result["peers"], result["reference"]),
        *peer_results.crowds(result["crowded"]),
    ):
        print(line)
    report.finish(result, peer_results.COLUMNS, peer_results.rows(result["peers"]), options.output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0])
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="peers to run, see --list; default: all")
    parser.add_argument("--list", action="store_true", help="list the peers and exit")
    parser.add_argument("--device", choices=tuple(PEERS), default="cpu")
    parser.add_argument(
        "--with", action="append", default=[], dest="variants", metavar="NAME=JSON",
        help="an additional sd2rt peer with these arguments of Pipeline.open",
    )  # fmt: skip
    parser.add_argument(
        "--python", action="append", default=[], metavar="NAME=PATH",
        help="interpreter of a peer; NAME may contain the wildcard *",
    )  # fmt: skip
    network = parser.add_mutually_exclusive_group()
    network.add_argument(
        "--small", action="store_const", const="small", dest="network", help="a tiny network"
    )
    network.add_argument(
        "--demo", action="store_const", const="demo", dest="network", help="the demo's network"
    )
    parser.set_defaults(network="full")
    parser.add_argument("--configs", help="another full-size architecture: a folder of export/configs")
    parser.add_argument("--checkpoint", type=Path, help="a diffusers folder; default: random weights")
    parser.add_argument("--bundle", type=Path, help="the bundle of that checkpoint; default: build it")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument(
        "--pairs", type=int, default=3, help="rounds; each peer generates one image per round"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", type=int, help="side of the images; default: the checkpoint's native size")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    together = parser.add_mutually_exclusive_group()
    together.add_argument("--together", type=int, help="largest number of processes open at the same time")
    together.add_argument(
        "--groups",
        nargs="+",
        metavar="NAME,NAME",
        help="peers open at the same time; sd2rt and diffusers join each group that names neither",
    )
    parser.add_argument("--limit", type=float, default=1800.0, help="time limit of a reply, in seconds")
    parser.add_argument("--images", type=Path, help="keep each peer's image in this folder, as NAME.npy")
    parser.add_argument(
        "--workdir", type=Path,
        help="folder of files to reuse in later runs; default: a temporary folder",
    )  # fmt: skip
    report.add_output(parser)
    return parser


def _select_peers(options: argparse.Namespace) -> list[Peer]:
    if options.bundle is not None and options.checkpoint is None:
        raise ValueError("--bundle requires --checkpoint")
    if options.steps < 2 or options.pairs < 1 or options.threads < 1:
        raise ValueError("--steps must be at least 2, --pairs and --threads at least 1")
    variants = []
    for text in options.variants:
        name, equals, value = text.partition("=")
        if not equals or not isinstance(arguments := json.loads(value), dict):
            raise ValueError(f'--with {text}: expected NAME={{"argument": value}}')
        variants.append(catalogue.variant(name, arguments))
    by_name = {peer.name: peer for peer in (*PEERS[options.device], *variants)}
    names = list(by_name) if options.peers is None else [*options.peers, *(peer.name for peer in variants)]
    if unknown := [name for name in names if name not in by_name]:
        raise ValueError(f"unknown peer {', '.join(unknown)}: choose from {', '.join(by_name)}")
    return [by_name[name] for name in dict.fromkeys(names)]


def _pythons(specs: Sequence[str], peers: Sequence[Peer]) -> dict[str, str]:
    pythons: dict[str, str] = {}
    for text in specs:
        name, equals, path = text.partition("=")
        matches = fnmatch.filter([peer.name for peer in peers], name)
        if not equals or not matches:
            raise ValueError(f"--python {text}: expected NAME=PATH with the name of a peer")
        # Workers start in the repository root, so a relative path must be resolved here.
        pythons |= dict.fromkeys(matches, os.path.abspath(path) if os.sep in path else path)
    return pythons


def _measure(
    peers: Sequence[Peer], pythons: dict[str, str], options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    facts = machine.facts()
    env = process.environment(folder)
    configs = options.configs or {"full": FULL_CONFIGS}.get(options.network, options.network)
    site_files = site.settle(
        folder,
        configs,
        env,
        checkpoint=options.checkpoint,
        bundle=options.bundle,
        precision="fp16" if options.device == "cuda" else "fp32",
    )
    jobs = {peer.name: site_files.job(peer, options.prompt, options.size, options.threads) for peer in peers}
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
        available = contest.prepare()
        if options.groups is not None:
            together = groups.parse(options.groups, peers)
        else:
            together = groups.form(available, site_files.weights_bytes, groups.free_bytes(), options.together)
        contest.run(together)
    job = jobs[peers[0].name]
    return {
        "benchmark": f"peers-{options.network}"
        + ("-gpu" if options.device == "cuda" else "")
        # Tables show the newest result of all peers.
        + ("-some" if options.peers else ""),
        "configs": configs if options.checkpoint is None else "given",
        "size": [job.width, job.height],
        "steps": options.steps,
        "pairs": options.pairs,
        "seed": options.seed,
        "threads": options.threads,
        "prompt": options.prompt,
        "scheduler": json.loads((site_files.checkpoint / "scheduler/scheduler_config.json").read_text())[
            "_class_name"
        ],
        "reference": contest.reference,
        "groups": together,
        "crowded": contest.crowded,
        "peers": peer_results.peers(contest.states),
        "others_cpu_seconds": round(contest.others_cpu_seconds, 2),
        "machine": facts,
        "load_average_after": machine.load_average(),
    }


def _environment(env: dict[str, str], threads: int, scratch: Path) -> dict[str, str]:
    """Set the same number of threads for every library, and an empty cache for torch.compile."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return env | counts | {"TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor")}


if __name__ == "__main__":
    main()
