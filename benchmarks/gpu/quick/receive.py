"""Take a call's parts of the kit, and unpack each archive that is complete.

    python3 -m benchmarks.gpu.quick.receive .kit/1 /tmp/kit

Uses the standard library only, since packages may still be missing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from pathlib import Path

from benchmarks.gpu.quick.archive import unpack

CONTENT = "content"
"""The archive of graphs and references; every other one holds packages."""


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: python3 -m benchmarks.gpu.quick.receive CALL_FOLDER KIT_FOLDER")
    try:
        for line in receive(Path(sys.argv[1]), Path(sys.argv[2])):
            print(line, flush=True)
    except (OSError, ValueError) as error:
        sys.exit(str(error))


def receive(call: Path, kit: Path) -> list[str]:
    """Copy the parts into ``kit/parts`` and unpack complete archives; returns a line for each archive.

    Raises:
        ValueError: a part is damaged.
    """
    folder = kit / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    listed = json.loads((call / "call.json").read_text())
    lines = []
    for part in listed:
        source = call / part["file"]
        if hashlib.sha256(source.read_bytes()).hexdigest() != part["sha256"]:
            raise ValueError(f"{source} is damaged: send the call again")
        shutil.copyfile(source, folder / part["file"])
    for name, count in {part["archive"]: part["parts"] for part in listed}.items():
        parts = sorted(folder.glob(f"{name}.[0-9][0-9]"))
        if len(parts) < count:
            lines.append(f"{name}: {len(parts)} of {count} parts")
            continue
        began = time.perf_counter()
        unpack(parts, kit / ("content" if name == CONTENT else "site"))
        for path in parts:
            path.unlink()
        done = kit / "received.txt"
        with done.open("a") as file:
            file.write(f"{name}\n")
        lines.append(f"{name}: unpacked in {time.perf_counter() - began:.1f} s")
    return lines


if __name__ == "__main__":
    main()
