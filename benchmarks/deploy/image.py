"""Build the image of deploy/Dockerfile, run it, and ask it for a picture.

    python -m benchmarks.deploy.image [--output]

Needs root, buildah and debootstrap, and the network: the base is a Debian that debootstrap makes, and packages come
from pip's index. The container is the image's files under a read-only mount, in namespaces of its own, with the
image's user, environment and command: what `docker run --read-only --tmpfs /tmp -v CACHE:/cache` gives it.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.deploy.container import Container
from benchmarks.recording import machine, report

ROOT = Path(__file__).resolve().parents[2]
FIELDS: dict[str, Any] = {
    "prompt": "a small red circle left of a large blue square",
    "num_inference_steps": 25,
    "seed": 7,
}
KEY = "a-key-of-the-benchmark"
_IMAGE, _BASE = "localhost/sd2rt:cpu", "localhost/debian:bookworm"
_LARGEST = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.deploy.image", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--suite", default="bookworm", help="Debian release of the base (default: bookworm)")
    parser.add_argument(
        "--storage", type=Path, help="folder for buildah's storage; kept, for a faster next run"
    )
    report.add_output(parser)
    options = parser.parse_args()
    for program in ("buildah", "debootstrap"):
        if shutil.which(program) is None:
            sys.exit(f"{program} is not installed: apt-get install {program}")
    if os.geteuid() != 0:
        sys.exit("building without a daemon and read-only mounts need root: run it as root")
    with tempfile.TemporaryDirectory(prefix="sd2rt-image-") as name:
        result: dict[str, Any] = {"benchmark": "deploy-image", "machine": machine.facts()}
        with report.interruptible(result, "benchmarks.deploy.image"):
            scratch = Path(name)
            builder = Builder(options.storage or scratch / "storage", scratch)
            result["base_seconds"] = builder.base(options.suite)
            result["build_seconds"] = builder.build()
            with builder.mounted() as (root, config):
                result |= {"size": weights(root), "config": config, "run": runs(root, config, scratch)}
        size, run = result["size"], result["run"]
        rows = [[label, f"{megabytes} MB"] for label, megabytes in size.items()]
        report.finish(result, ("image", "value"), [*rows, *map(list, run.items())], options.output)
        if not all(run[check] for check in CHECKS):
            sys.exit(1)


class Builder:
    """buildah without a daemon: chroot isolation, and plain copies as storage."""

    def __init__(self, storage: Path, scratch: Path) -> None:
        self._storage, self._scratch = storage, scratch

    def buildah(self, *arguments: object) -> str:
        """Run buildah, and return what it prints.

        Raises:
            SystemExit: it failed; with its last lines.
        """
        command = ["buildah", "--root", self._storage / "root", "--runroot", self._storage / "run"]
        command += ["--storage-driver", "vfs", *arguments]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"buildah {arguments[0]} failed:\n{(done.stdout + done.stderr)[-3000:]}")
        return done.stdout.strip()

    def base(self, suite: str) -> float | None:
        """Make the base image, unless the storage has it; return the seconds."""
        if _BASE in self.buildah("images", "--format", "{{.Name}}:{{.Tag}}"):
            return None
        began = time.monotonic()
        folder = self._scratch / "base"
        subprocess.run(
            ["debootstrap", "--variant=minbase", suite, folder], check=True, stdout=subprocess.DEVNULL
        )
        # As in the published slim images: packages that were fetched, lists, manuals.
        for name in (
            "var/cache/apt/archives",
            "var/lib/apt/lists",
            "usr/share/doc",
            "usr/share/man",
            "usr/share/locale",
        ):
            for entry in (folder / name).iterdir():
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        container = self.buildah("from", "scratch")
        self.buildah("add", container, folder, "/")
        self.buildah(
            "config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container
        )
        self.buildah("commit", "--rm", container, _BASE)
        shutil.rmtree(folder)
        return round(time.monotonic() - began, 1)

    def build(self) -> float:
        """Build the image; return the seconds."""
        began = time.monotonic()
        mounts: list[object] = []
        if certificates := os.environ.get("PIP_CERT"):
            # Only for this build: an index with a certificate of one's own.
            settings = self._scratch / "pip.conf"
            settings.write_text("[global]\ncert = /etc/index-certificates.crt\n")
            mounts = ["--volume", f"{certificates}:/etc/index-certificates.crt:ro"]
            mounts += ["--volume", f"{settings}:/etc/pip.conf:ro"]
        self.buildah(
            *("build-using-dockerfile", "--isolation", "chroot", "--format", "docker"),
            *("--build-arg", f"BASE={_BASE}", "--ignorefile", ROOT / "deploy" / "Dockerfile.dockerignore"),
            *(*mounts, "--file", ROOT / "deploy" / "Dockerfile", "--tag", _IMAGE, ROOT),
        )
        return round(time.monotonic() - began, 1)

    def mounted(self) -> Mounted:
        """Mount a container of the image for a ``with`` block."""
        return Mounted(self)


class Mounted:
    """The files of a container, and the image's configuration."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._container = builder.buildah("from", "--pull-never", _IMAGE)

    def __enter__(self) -> tuple[Path, dict[str, Any]]:
        root = Path(self._builder.buildah("mount", self._container))
        image = json.loads(self._builder.buildah("inspect", "--type", "image", _IMAGE))
        return root, image["Docker"]["config"]

    def __exit__(self, *exception: object) -> None:
        self._builder.buildah("umount", self._container)
        self._builder.buildah("rm", self._container)


def weights(root: Path) -> dict[str, float]:
    """Return megabytes of the whole image, and of what weighs most in it."""
    sizes = {"all": _megabytes(root), "Debian with Python": _megabytes(root) - _megabytes(root / "opt/sd2rt")}
    (packages,) = (root / "opt/sd2rt").glob("lib/python3.*/site-packages")
    found = {entry.name: _megabytes(entry) for entry in packages.iterdir()}
    largest = sorted(found, key=lambda name: -found[name])[:_LARGEST]
    sizes |= {name: found[name] for name in largest}
    sizes["other packages"] = sum(found.values()) - sum(found[name] for name in largest)
    compiled = sum(path.stat().st_size for path in root.glob("opt/sd2rt/**/*.pyc"))
    return {name: round(size, 1) for name, size in sizes.items()} | {
        "of it compiled Python": round(compiled / 1e6, 1)
    }


def _megabytes(path: Path) -> float:
    done = subprocess.run(["du", "-sxB1", path], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0]) / 1e6


CHECKS = (
    "same_pixels",
    "healthy",
    "root_is_read_only",
    "user_is_10001",
    "is_process_1",
    "ends_with_0",
    "no_key_is_refused",
)


def runs(root: Path, config: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Run the image without a key, with an empty cache, and with a filled one."""
    cache = scratch / "cache"
    cache.mkdir()
    os.chown(cache, 10001, 10001)
    refused = Container(root, config, cache, {})
    code, lines = refused.wait(60), refused.log.splitlines()
    found: dict[str, Any] = {
        "no_key_is_refused": code == 2 and len(lines) == 1 and "no key is set" in lines[0],
    }
    for label in ("first_start", "next_start"):
        with Container(root, config, cache, {"SD2RT_API_KEY": KEY}) as container:
            found[f"{label}_seconds"] = round(container.wait_ready(), 2)
            picture = container.generate(KEY, FIELDS)
            found[f"{label}_front_mb"], found[f"{label}_worker_mb"] = container.memory_mb()
            if label == "next_start":
                found["healthy"] = container.healthy()
                found["user_is_10001"] = container.owners() == {10001}
                found["is_process_1"] = container.is_process_1()
                found["root_is_read_only"] = not container.can_write("/etc/x") and container.can_write(
                    "/tmp/x"
                )
                found["same_pixels"] = picture == expected_pixels()
            began = time.monotonic()
            found["ends_with_0"] = container.stop() == 0
            found["end_seconds"] = round(time.monotonic() - began, 2)
    return found


def pixels_of(text: str) -> bytes:
    """Return the pixels of an image in base64."""
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(text))).tobytes()


def expected_pixels() -> bytes:
    """Draw the same picture outside of the container."""
    from sd2rt.engines.demo.build import build_demo
    from sd2rt.runtime.pipeline.pipeline import Pipeline

    with tempfile.TemporaryDirectory() as folder:
        build_demo("demo", Path(folder) / "demo")
        with Pipeline.open(Path(folder) / "demo") as pipeline:
            pixels: bytes = pipeline(**FIELDS).images[0].tobytes()
            return pixels


if __name__ == "__main__":
    main()
