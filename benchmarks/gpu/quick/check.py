"""`python -m benchmarks.gpu_check --quick`: the stages of a short lease, from a kit that `receive` has unpacked.

    python -m benchmarks.gpu_check --quick --kit /tmp/kit --output $OUT --budget-seconds 500
    python -m benchmarks.gpu_check --quick --kit KIT --output DIR --small      a dry run on the CPU

Each stage is a process with a time limit. A record is on the disk before the next one is computed, and the report
is written after every stage. The same command again, or another call with the same --workdir, continues.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu.quick import records, report
from benchmarks.gpu.quick.settings import QuickSettings
from benchmarks.gpu.quick.stages import QuickStage, choose
from benchmarks.gpu.site import ROOT, environment, make_site
from benchmarks.gpu.stage_process import stop
from benchmarks.recording import process

LOG = "log.txt"
_FINISH_SECONDS = 5.0
"""Left of the budget for the report."""


def main(arguments: list[str]) -> None:
    options = _options(arguments)
    for folder in (options.workdir, options.output):
        folder.mkdir(parents=True, exist_ok=True)
    settings = QuickSettings(
        kit=str(options.kit.resolve()),
        workdir=str(options.workdir.resolve()),
        output=str(options.output.resolve()),
        device="cpu" if options.small else "cuda",
        small=options.small,
        steps=options.steps or (2 if options.small else 20),
        rounds=options.rounds,
    )
    try:
        stages = choose(options.stages)
    except ValueError as error:
        sys.exit(str(error))
    check = QuickCheck(settings, options.budget_seconds, options.limit)
    for stage in stages:
        check.run(stage)
    print(check.report_path)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check --quick",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--kit", type=Path, required=True, metavar="FOLDER", help="where receive unpacked the kit"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="for records and report")
    parser.add_argument(
        "--workdir", type=Path, default=Path("/tmp/sd2rt-quick"), help="bundle, cache, engines"
    )
    parser.add_argument(
        "--stages", nargs="+", default=[], metavar="STAGE", help="ort, product-speed...; all if left out"
    )
    parser.add_argument(
        "--budget-seconds", type=float, default=540.0, metavar="S", help="for all stages of this command"
    )
    parser.add_argument("--limit", type=float, metavar="S", help="overrides the time limit of each stage")
    parser.add_argument("--small", action="store_true", help="a dry run: a kit of tiny networks, on the CPU")
    parser.add_argument("--steps", type=int, help="launches of a round and steps of an image: 20; small: 2")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args(arguments)


class QuickCheck:
    """Runs stages within one budget and keeps their records in the output folder and in the workdir."""

    def __init__(self, settings: QuickSettings, budget_seconds: float, limit: float | None = None) -> None:
        self._settings, self._limit = settings, limit
        self._end = time.monotonic() + budget_seconds
        output, self._workdir = Path(settings.output), Path(settings.workdir)
        self._records, self._log = output / records.FILE, output / LOG
        self.report_path = output / report.FILE
        for path in (self._records, self._log):
            earlier = self._workdir / path.name
            if not path.is_file() and earlier.is_file():
                # From an earlier call of the same lease, whose output folder is gone.
                shutil.copyfile(earlier, path)
        base = process.environment(self._workdir)
        del base["PYTHONPYCACHEPREFIX"]
        if settings.device == "cpu":
            base.setdefault("OMP_NUM_THREADS", "1")
        self._env = environment(base, make_site(self._workdir / "site"), settings.site)

    def run(self, stage: QuickStage) -> None:
        """Run a stage unless it is done already, or cannot be run; the report is written either way."""
        earlier = records.read(self._records)
        left = self._end - time.monotonic()
        if records.outcome(earlier.get(stage.name, [])).get(records.OUTCOME) == "done":
            print(f"{stage.name}: done before", flush=True)
            return
        reason = self._obstacle(stage, earlier, left)
        if reason is not None:
            self._end_stage(stage, {records.OUTCOME: "skipped", "reason": reason}, None)
            return
        began = time.monotonic()
        print(f"{stage.name} ...", flush=True)
        records.append(
            self._records, stage.name, {"started": datetime.now(UTC).isoformat(timespec="seconds")}
        )
        limit = min(self._limit or stage.limit_s, left - _FINISH_SECONDS)
        self._end_stage(stage, self._process(stage, limit), began)

    def _obstacle(self, stage: QuickStage, earlier: dict[str, Any], left: float) -> str | None:
        if left < stage.least_s:
            return f"{left:.0f} s of the budget are left, it needs {stage.least_s:.0f}"
        if stage.archive is not None and self._settings.device == "cuda":
            done = Path(self._settings.kit) / "received.txt"
            if not done.is_file() or stage.archive not in done.read_text().split():
                return f"the kit's archive {stage.archive} has not been received"
        if stage.after is not None:
            before = records.outcome(earlier.get(stage.after, [])).get(records.OUTCOME, "not run")
            # A dry run builds engines although nothing can say whether they run.
            if before != "done" and not (before == "skipped" and self._settings.device == "cpu"):
                return f"the stage {stage.after} is {before}"
        return None

    def _process(self, stage: QuickStage, limit: float) -> dict[str, Any] | None:
        """Run the stage's process; its outcome where it could not record one itself."""
        command = [sys.executable, "-m", "benchmarks.gpu.quick.worker", stage.name, str(self._records)]
        with self._log.open("a") as log:
            log.write(f"--- {stage.name}\n")
            log.flush()
            running = subprocess.Popen(
                command, cwd=ROOT, env=self._env, stdin=subprocess.PIPE, stderr=log, text=True
            )
            try:
                assert running.stdin is not None
                running.stdin.write(self._settings.to_json())
                running.stdin.close()
                running.wait(limit)
            except subprocess.TimeoutExpired:
                return {records.OUTCOME: "stopped", "reason": f"it took longer than {limit:.0f} s"}
            finally:
                stop(running)
        if records.OUTCOME in records.read(self._records)[stage.name][-1]:
            return None
        code = running.returncode
        died = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return {records.OUTCOME: "failed", "reason": f"its process {died}: {lines[-1][:300]}"}

    def _end_stage(self, stage: QuickStage, ended: dict[str, Any] | None, began: float | None) -> None:
        if ended is None:
            ended = records.outcome(records.read(self._records)[stage.name])
        seconds = None if began is None else round(time.monotonic() - began, 1)
        records.append(self._records, stage.name, {**ended, "seconds": seconds})
        reason = ended["reason"]
        print(
            f"{stage.name}: {ended[records.OUTCOME]}{f': {reason}' if reason else ''}, {seconds} s",
            flush=True,
        )
        self.report()
        for path in (self._records, self._log):
            if path.is_file() and path.parent != self._workdir:
                shutil.copyfile(path, self._workdir / path.name)

    def report(self) -> None:
        """Write the report of all records so far."""
        settings = self._settings
        size = "tiny networks on the CPU: a dry run" if settings.small else "full size, batch 1"
        date = datetime.now(UTC).isoformat(timespec="seconds")
        heading = f"{date}; {size}; {settings.rounds} rounds of {settings.steps} steps."
        report.write_report(records.read(self._records), self.report_path, heading, settings.predicted)
