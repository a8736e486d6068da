"""Export the demo's graphs into the package.

    python -m benchmarks.demo.graphs     takes a few minutes; replaces the packaged graphs

Run it when the export code or the versions in constraints.txt have changed. The weights do not matter and are random.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from sd2rt.engines.bundle.cache import CACHE_VARIABLE
from sd2rt.engines.demo.files import GRAPHS
from sd2rt.export.build import build
from sd2rt.export.checkpoints.checkpoint import open_checkpoint
from sd2rt.export.checkpoints.demo import DEMO_NAMES
from sd2rt.export.checkpoints.tiny_configs import DEMO_SEED, DEMOS
from sd2rt.export.testing.random_weights import random_checkpoint


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m benchmarks.demo.graphs", description=__doc__.splitlines()[0]
    ).parse_args()
    # A packaged graph would be reused instead of exported.
    for path in GRAPHS.glob("*.zip"):
        path.unlink()
    GRAPHS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sd2rt-graphs-") as scratch:
        os.environ[CACHE_VARIABLE] = scratch
        for name, kind in DEMO_NAMES.items():
            path = random_checkpoint(Path(scratch) / name, configs=DEMOS[kind], seed=DEMO_SEED)
            build(open_checkpoint(str(path)), Path(scratch) / "bundles" / name)
            print(f"{name}: exported", flush=True)
        for path in sorted((Path(scratch) / "graphs").iterdir()):
            (GRAPHS / path.name).write_bytes(path.read_bytes())
    total = sum(path.stat().st_size for path in GRAPHS.glob("*.zip"))
    print(f"{total / 1e3:.0f} kB in {GRAPHS}")


if __name__ == "__main__":
    main()
