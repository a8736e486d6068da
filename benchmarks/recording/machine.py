"""Describe the machine of a result, so that results can be compared."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

_PEERS = ("torch", "triton", "diffusers", "transformers", "accelerate", "onnx", "onnxscript")
"""Packages of the export and the peers, in addition to those of the runtime."""
_MEASURED = ("engines", "export", "runtime", "src", "benchmarks/*.py")
"""Git pathspecs of measured code; an asterisk matches folders too. Results are not code."""
_ROOT = Path(__file__).resolve().parent.parent.parent


def facts() -> dict[str, Any]:
    """Hardware, software versions and date; no names of hosts, users or folders."""
    # Imported late: gpu_check makes the package importable where it is not installed.
    from sd2rt.runtime.bench import machine

    return machine.facts((*machine.PACKAGES, *_PEERS)) | commit()


def commit() -> dict[str, Any]:
    """The source tree's commit (None outside a repository), and if measured code has uncommitted changes."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", *_MEASURED)),
    }


def load_average() -> list[float]:
    """Load averages over the last 1, 5 and 15 minutes."""
    from sd2rt.runtime.bench import machine

    return machine.load_average()


def _git(*arguments: str) -> str | None:
    try:
        completed = subprocess.run(
            ["git", "-C", _ROOT, *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return completed.stdout.strip()


if __name__ == "__main__":
    import json

    print(json.dumps(facts(), indent=1))
