"""Check sd2rt on a GPU in one command: facts, parity, speed, peers, LoRAs, error messages.

    python -m benchmarks.gpu_check --output results/            on a machine with an NVIDIA GPU
    python -m benchmarks.gpu_check --dry-run --output /tmp/dry  anywhere: tiny networks on the CPU, in minutes

    python -m benchmarks.gpu_check --quick --help               the same within 15 minutes on a borrowed machine

Each stage is a process with a time limit. Records are kept in --workdir as they are measured, and the same command
again runs the stages that are not done. Works from a bare checkout: ``sd2rt`` need not be installed.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu.settings import Settings
from benchmarks.gpu.site import ROOT, environment, install_wheels, make_site
from benchmarks.gpu.stage import STAGES, Job, jobs
from benchmarks.gpu.stage_process import stop
from benchmarks.gpu.tables import dumped, markdown
from benchmarks.recording import process

REPORT = "report"
LIMIT_SECONDS = 480.0
VARIANTS = ("2.1-base@512", "2.1-v@768")


def main() -> None:
    if "--quick" in sys.argv[1:]:
        from benchmarks.gpu.quick.check import main as quick

        quick([word for word in sys.argv[1:] if word != "--quick"])
        return
    options = _options()
    if options.list:
        for stage in STAGES:
            print(f"{stage.name:<28} {stage.purpose}; needs {stage.needs}")
        return
    options.workdir = options.workdir.resolve()
    settings = _settings(options)
    chosen = [name for name in options.stages if name != REPORT]
    try:
        todo = [] if options.stages == [REPORT] else jobs(settings, chosen)
        check = Check(settings, options.workdir, options.wheels, options.limit)
    except (RuntimeError, ValueError) as error:
        sys.exit(str(error))
    try:
        for job in todo:
            check.run(job, again=options.again)
    finally:
        # An interrupted check reports what it has.
        for path in check.report(options.output or options.workdir, options.commit):
            print(path, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--workdir", type=Path, default=Path("/tmp/sd2rt-gpu-check"), help="folder of all files"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder of the JSON and Markdown report; default: the workdir",
    )
    parser.add_argument(
        "--stages",
        nargs="+",
        default=[],
        metavar="STAGE",
        help="NAME, NAME@VARIANT, or report; default: all",
    )
    parser.add_argument("--list", action="store_true", help="list the stages and their requirements")
    parser.add_argument("--again", action="store_true", help="repeat stages that are done")
    parser.add_argument(
        "--limit",
        type=float,
        default=LIMIT_SECONDS,
        metavar="S",
        help="time limit of a stage, in seconds",
    )
    parser.add_argument(
        "--variant",
        nargs="+",
        default=None,
        metavar="NAME[@SIDE,...]",
        help=f"checkpoints and sides of their images; default: {' '.join(VARIANTS)}",
    )
    parser.add_argument("--small", action="store_true", help="tiny networks of 64x64 pixels")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="no GPU: --small on the CPU; stages that need a GPU are skipped",
    )
    parser.add_argument("--sm", help="compute capability to compile TensorRT for RTX for; dry run: 89")
    parser.add_argument("--buckets", default="1,4,8", help="batch sizes of the bucketed engines")
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        default=None,
        help="batch sizes to time; default: 1 4 8 16; dry run: 1 4",
    )
    parser.add_argument(
        "--compile-batches", type=int, nargs="+", default=[1], help="batch sizes that PyTorch compiles for"
    )
    parser.add_argument("--steps", type=int, default=None, help="steps of an image; default: 20; dry run: 3")
    parser.add_argument(
        "--rounds", type=int, default=None, help="turns of each side of a comparison; default: 9; dry run: 2"
    )
    parser.add_argument(
        "--wheels",
        type=Path,
        metavar="FOLDER",
        help="install these wheels into the workdir, without a network",
    )
    parser.add_argument("--commit", help="commit to record where git is missing")
    return parser.parse_args()  # fmt: skip


def _settings(options: argparse.Namespace) -> Settings:
    dry = options.dry_run
    small = options.small or dry
    # Small networks have one size, and other variants of them add nothing.
    named = options.variant or (VARIANTS[:1] if dry else VARIANTS)
    sizes = []
    for word in named:
        name, _, sides = word.partition("@")
        sizes.append((name, () if small else tuple(int(side) for side in sides.split(",") if side)))
    return Settings(
        workdir=str(options.workdir),
        device="cpu" if dry else "cuda",
        small=small,
        sm=options.sm or ("89" if dry else None),
        sizes=tuple(sizes),
        buckets=options.buckets,
        batches=tuple(options.batches or ((1, 4) if dry else (1, 4, 8, 16))),
        compile_batches=tuple(options.compile_batches),
        steps=options.steps or (3 if dry else 20),
        rounds=options.rounds or (2 if dry else 9),
    )


class Check:
    """Runs stages as processes and keeps their records."""

    def __init__(self, settings: Settings, workdir: Path, wheels: Path | None, limit: float) -> None:
        self._settings, self._folder, self._limit = settings, workdir, limit
        for name in ("records", "outcomes", "logs"):
            (workdir / name).mkdir(parents=True, exist_ok=True)
        site = make_site(workdir / "site")
        installed = None if wheels is None else install_wheels(wheels, workdir / "wheels")
        if installed is None and (workdir / "wheels").is_dir():
            # From an earlier call.
            installed = workdir / "wheels"
        base = process.environment(workdir)
        # Installed modules are compiled already; another cache would compile them all again.
        del base["PYTHONPYCACHEPREFIX"]
        if settings.device == "cpu":
            # Threads slow tiny networks down.
            base.setdefault("OMP_NUM_THREADS", "1")
        self._env = environment(base, site, installed)

    def run(self, job: Job, *, again: bool) -> None:
        """Run a stage unless it is done; a failure is recorded, not raised."""
        settings = self._settings.to_json()
        before = self._outcome(job)
        if not again and before.get("outcome") == "done" and before.get("settings") == settings:
            print(f"{job.name}: done before, in {before['seconds']:.0f} s", flush=True)
            return
        print(f"{job.name} ...", flush=True)
        date, began = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        result = self._process(job, settings)
        seconds = round(time.monotonic() - began, 1)
        result |= {"seconds": seconds, "date": date, "settings": settings}
        self._path("outcomes", job, "json").write_text(json.dumps(result, indent=1) + "\n")
        reason = result["reason"]
        print(
            f"{job.name}: {result['outcome']} in {seconds:.0f} s{f': {reason}' if reason else ''}", flush=True
        )

    def _process(self, job: Job, settings: str) -> dict[str, Any]:
        records, outcome, log = (
            self._path(*key)
            for key in (("records", job, "jsonl"), ("outcomes", job, "new"), ("logs", job, "txt"))
        )
        outcome.unlink(missing_ok=True)
        records.write_text("")
        command = [
            sys.executable,
            "-m",
            "benchmarks.gpu.worker",
            job.stage.name,
            job.variant,
            str(records),
            str(outcome),
        ]
        with log.open("w") as errors:
            running = subprocess.Popen(
                command, cwd=ROOT, env=self._env, stdin=subprocess.PIPE, stderr=errors, text=True
            )
            try:
                assert running.stdin is not None
                running.stdin.write(settings)
                running.stdin.close()
                running.wait(self._limit)
            except subprocess.TimeoutExpired:
                return {"outcome": "stopped", "reason": f"it took longer than {self._limit:g} s"}
            finally:
                stop(running)
        if outcome.is_file():
            result: dict[str, Any] = json.loads(outcome.read_text())
            outcome.unlink()
            return result
        code = running.returncode
        ending = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return {"outcome": "failed", "reason": f"its process {ending}: {' '.join(lines[-1:])[:300]}"}

    def report(self, output: Path, commit: str | None) -> tuple[Path, Path]:
        """Write all records so far as JSON and as Markdown."""
        command = [sys.executable, "-m", "benchmarks.recording.machine"]
        # In the stages' environment, with the packages of the wheels.
        facts = json.loads(subprocess.check_output(command, cwd=ROOT, env=self._env))
        facts["commit"] = facts["commit"] or commit
        stages = {}
        for job in jobs(self._settings, []):
            outcome = self._outcome(job)
            if outcome:
                outcome["settings"] = json.loads(outcome["settings"])
                del outcome["settings"]["workdir"]
                lines = self._path("records", job, "jsonl").read_text().splitlines()
                stages[job.name] = {**outcome, "records": [json.loads(line) for line in lines]}
        name = "gpu-check-dry" if self._settings.device == "cpu" else "gpu-check"
        result = {"benchmark": name, "machine": facts, "stages": stages}
        output.mkdir(parents=True, exist_ok=True)
        files = tuple(output / f"{facts['date'][:10]}-{name}.{kind}" for kind in ("json", "md"))
        # Messages of tools may name the workdir.
        for file, text in zip(files, (dumped(result), markdown(result)), strict=True):
            file.write_text(text.replace(str(self._folder), "WORKDIR"), encoding="utf-8")
        return files[0], files[1]

    def _outcome(self, job: Job) -> dict[str, Any]:
        path = self._path("outcomes", job, "json")
        outcome: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        return outcome

    def _path(self, kind: str, job: Job, suffix: str) -> Path:
        return self._folder / kind / f"{job.name}.{suffix}"


if __name__ == "__main__":
    main()
