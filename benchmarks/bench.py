"""`sd2rt bench` of this source tree: the same options and tables, and the commit in the result that is written.

    python -m benchmarks.bench BUNDLE [--output [FILE]] [options of sd2rt bench]

What is installed knows its version. Which commit that is, and whether files were changed since, the tree knows alone.
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
    options, told = parser.parse_known_args()
    # Before: what is committed while it measures is not what is measured.
    commit = machine.commit()
    with tempfile.TemporaryDirectory(prefix="sd2rt-bench-") as name:
        path = Path(name) / "bench.json"
        # What it prints as its last line has no commit, so that it is read from the file alone.
        ended = subprocess.run(process.sd2rt("bench", *told, "--output", path), check=False)
        if ended.returncode != 0 or not path.exists():
            sys.exit(ended.returncode)
        result = json.loads(path.read_text())
    result["machine"] |= commit
    if options.output is not None:
        report.write(result, options.output)


if __name__ == "__main__":
    main()
