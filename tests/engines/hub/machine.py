"""A user's machine in tests of the Hub: commands in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .hub_server import LocalHub

_UNSET = (
    "HF_TOKEN",
    "HF_HUB_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY",
    "DISABLE_TELEMETRY",
    "DO_NOT_TRACK",
    "HF_HOME",
)


@dataclass
class Machine:
    """A user's home and cache on one machine; commands run as processes."""

    home: Path
    hub: LocalHub

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    def environment(self, **variables: str) -> dict[str, str]:
        own = {
            "HOME": str(self.home),
            "SD2RT_CACHE_DIR": str(self.cache),
            "HF_ENDPOINT": self.hub.endpoint,
            # The transfer that this Hub speaks.
            "HF_HUB_DISABLE_XET": "1",
        }
        return {name: value for name, value in os.environ.items() if name not in _UNSET} | own | variables

    def start(self, *words: object, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "sd2rt", *map(str, words)],
            cwd=self.home,
            env=self.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        child = self.start(*words, **variables)
        output, errors = child.communicate(timeout=120)
        return subprocess.CompletedProcess(child.args, child.returncode, output, errors)

    def refused(self, code: int, *words: object, **variables: str) -> str:
        """Run a command that fails with an exit code and one line, which is returned."""
        ended = self.run(*words, **variables)
        assert ended.returncode == code, ended.stderr
        assert ended.stdout == ""
        line = ended.stderr.splitlines()[-1]
        assert line.startswith("sd2rt: ")
        assert "Traceback" not in ended.stderr
        return line

    def leftovers(self) -> list[str]:
        """Files in the cache's bundles, hidden ones too."""
        bundles = self.cache / "bundles"
        return sorted(path.relative_to(bundles).as_posix() for path in bundles.rglob("*") if path.is_file())


def contents(folder: Path) -> dict[str, bytes]:
    """Files of a folder by path, as a repository has them."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
