"""The machine that a result was made on: what its reader needs to compare it with another."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

_PEERS = ("torch", "triton", "diffusers", "transformers", "accelerate", "onnx", "onnxscript")
"""Packages of the export and of the peers, beside those that make images."""
_MEASURED = ("engines", "export", "runtime", "src", "benchmarks/*.py")
"""Paths as git takes them, in which an asterisk stands for folders too: results are left out."""
_ROOT = Path(__file__).resolve().parent.parent.parent


def facts() -> dict[str, Any]:
    """What the hardware, the software and the moment are; nothing that names a host, a user or a folder."""
    # Here, as gpu_check brings the package along where it is not installed.
    from sd2rt.runtime.bench import machine

    return machine.facts((*machine.PACKAGES, *_PEERS)) | commit()


def commit() -> dict[str, Any]:
    """The source tree's commit, None where it is no repository, and whether what is measured was changed since."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", *_MEASURED)),
    }


def load_average() -> list[float]:
    """Processes that were running or waited to, over the last 1, 5 and 15 minutes."""
    from sd2rt.runtime.bench import machine

    return machine.load_average()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", _ROOT, *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


if __name__ == "__main__":
    import json

    print(json.dumps(facts(), indent=1))
