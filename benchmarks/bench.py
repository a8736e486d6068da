"""Run `sd2rt bench` and add this source tree's commit to the result.

    python -m benchmarks.bench BUNDLE [--output [FILE]] [options of sd2rt bench]

An installed `sd2rt` knows its version. Only the source tree knows the commit and whether files were changed since.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.recording import machine, process, report


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench",
        description=__doc__.splitlines()[0],
        add_help=False,
        allow_abbrev=False,
    )
    report.add_output(parser)
    options, bench_options = parser.parse_known_args()
    # Read before the run: a commit made meanwhile is not the code that was measured.
    commit = machine.commit()
    with tempfile.TemporaryDirectory(prefix="sd2rt-bench-") as name:
        path = Path(name) / "bench.json"
        completed = subprocess.run(process.sd2rt("bench", *bench_options, "--output", path), check=False)
        if completed.returncode != 0 or not path.exists():
            sys.exit(completed.returncode)
        result = json.loads(path.read_text())
    result["machine"] |= commit
    if options.output is not None:
        report.write(result, options.output)


if __name__ == "__main__":
    main()
