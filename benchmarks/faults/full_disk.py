"""Commands whose disk is full: a small file system in memory, mounted for them alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from benchmarks.faults.killed import Workplace, half_files, leftovers
from benchmarks.faults.recorder import Recorder

# The mount is gone with its process: what the command left on it is copied before.
_MOUNTED = """
mount -t tmpfs -o size="$1" sd2rt-full "$2" || exit 99
folder=$2 copy=$3; cd "$4"; shift 4
"$@"; code=$?
cd /
cp -a "$folder/." "$copy" || exit 98
exit $code
"""
_STEPS = ("--steps", "2", "--threads", "1", "--sampler", "euler")
_CASES: tuple[tuple[str, str, tuple[str, ...], int], ...] = (
    # Folder on the full disk, its size, the command, its exit code.
    ("out", "4k", ("run", "demo", "a", "--seed", "5", *_STEPS, "-o", "."), 5),
    ("out", "12k", ("run", "demo", "a", "--seed", "5", *_STEPS, "-o", "a.png"), 5),
    ("out", "24k", ("run", "demo", "a", "--count", "3", *_STEPS, "-o", "."), 5),
    ("out", "4k", ("samplers", "euler", "--plot", "a.png"), 5),
    ("out", "8k", ("samplers", "euler", "--plot", "a.svg"), 5),
    ("out", "16k", ("samplers", "--plot", "a.png"), 5),
    (
        "out",
        "4k",
        ("bench", "demo", *_STEPS, "--repetitions", "1", "--no-first-image", "--profile", "a.json"),
        5,
    ),
    ("cache/prepared", "1m", ("prepare", "demo"), 4),
    ("cache/prepared", "15m", ("prepare", "demo"), 4),
    ("cache/full", "1m", ("build", "demo", "-o", "../cache/full/demo"), 4),
    ("cache/full", "44m", ("build", "demo", "-o", "../cache/full/demo"), 0),
    ("cache/receipts", "4k", ("run", "demo", "a", *_STEPS, "-o", "."), 0),
)


def full_disks(recorder: Recorder, cases: int, place: Workplace) -> None:
    """Run commands on full disks; the cases repeat beyond a dozen. Needs root, to mount; records nothing without."""
    if os.geteuid() != 0:
        print("full disks: left out, mounting needs root", file=sys.stderr)
        return
    for case in range(cases):
        name, size, words, code = _CASES[case % len(_CASES)]
        for stale in ("out", "cache/prepared", "cache/full", "cache/receipts"):
            shutil.rmtree(place.root / stale, ignore_errors=True)
        folder, copy = place.folder(name), Workplace(place.root.parent / "copy")
        shutil.rmtree(copy.root, ignore_errors=True)
        command = [sys.executable, "-P", "-m", "sd2rt", *words]
        paths = (folder, copy.folder(name), place.folder("out"))
        mounted = ["unshare", "--mount", "sh", "-c", _MOUNTED, "sh", size, *map(str, paths)]
        try:
            child = subprocess.run(
                [*mounted, *command],
                env=place.environment(),
                capture_output=True,
                text=True,
                check=False,
                timeout=600,
            )
        except subprocess.TimeoutExpired:
            recorder.record("full disks", "hang", f"{case}: {name} of {size}: {' '.join(words)}")
            continue
        label = f"{case}: {name} of {size}: {' '.join(words[:2])}"
        lines = [line for line in child.stderr.splitlines() if line.startswith("sd2rt: ")]
        if child.returncode != code or len(lines) != (1 if code else 0):
            detail = f"exit {child.returncode}, not {code}: {child.stderr.strip()[-200:]}"
            recorder.record("full disks", "exit 1", label, detail)
        elif code and not any(text in lines[0] for text in ("full", "No space left", " free")):
            recorder.record("full disks", "wrong", label, child.stderr.strip()[-200:])
        elif half := half_files(copy):
            recorder.record("full disks", "left behind", label, f"half written: {half}")
        elif left := [path for path in leftovers(copy) if ".building" not in path]:
            recorder.record("full disks", "left behind", label, str(left))
        else:
            recorder.record("full disks", "held", label)
