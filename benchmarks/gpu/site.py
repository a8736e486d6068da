"""What a machine lacks to import ``sd2rt`` from a bare checkout: a package folder, commands, wheels, libraries."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def make_site(folder: Path, root: Path = ROOT) -> Path:
    """Fill ``folder`` with what an installation of the checkout ``root`` would have, and return it.

    ``sd2rt`` is a link to the checkout's package; beside it lies the metadata by which the command line finds its
    subcommands and its version. On PYTHONPATH it comes before any installed ``sd2rt``: what is measured is this
    checkout.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "sd2rt"
    if link.is_symlink():
        link.unlink()
    link.symlink_to(
        root / project["tool"]["setuptools"]["package-dir"][""] / "sd2rt", target_is_directory=True
    )
    about = project["project"]
    metadata = folder / f"sd2rt-{about['version']}.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: sd2rt\nVersion: {about['version']}\n", encoding="utf-8"
    )
    lines = [
        line
        for group, points in about["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {target}" for name, target in points.items()))
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def install_wheels(wheels: Path, folder: Path) -> Path:
    """Install every wheel of a folder into ``folder``, from that folder alone; what is there stays.

    Raises:
        RuntimeError: there is none, or pip refuses one; with its last line.
    """
    files = sorted(wheels.glob("*.whl"))
    if not files:
        raise RuntimeError(f"{wheels} holds no wheels")
    told = "\n".join(f"{file.name} {file.stat().st_size}" for file in files)
    done = folder / "installed.txt"
    if done.is_file() and done.read_text() == told:
        return folder
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    pip += ["--disable-pip-version-check", "--upgrade", "--target", str(folder), *map(str, files)]
    ran = subprocess.run(pip, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        lines = (ran.stderr or ran.stdout).strip().splitlines() or [f"exit code {ran.returncode}"]
        raise RuntimeError(f"pip could not install the wheels of {wheels}: {lines[-1]}")
    done.write_text(told)
    return folder


def environment(base: dict[str, str], site: Path, wheels: Path | None) -> dict[str, str]:
    """The environment in which stages run: ``base`` with the site, the wheels and CUDA's libraries."""
    paths = [str(site), *([] if wheels is None else [str(wheels)])]
    if base.get("PYTHONPATH"):
        paths.append(base["PYTHONPATH"])
    libraries = _cuda_libraries(wheels)
    if base.get("LD_LIBRARY_PATH"):
        libraries.append(base["LD_LIBRARY_PATH"])
    found = {**base, "PYTHONPATH": os.pathsep.join(paths)}
    if libraries:
        found["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
    return found


def _cuda_libraries(wheels: Path | None) -> list[str]:
    """Folders of CUDA's libraries in pip packages: a backend in another folder than theirs does not look there."""
    spec = find_spec("nvidia")
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec is not None else []
    if wheels is not None:
        places.append(wheels / "nvidia")
    found = [folder for place in places for folder in sorted(place.glob("**/lib")) if folder.is_dir()]
    if wheels is not None:
        found += [folder for folder in sorted(wheels.glob("tensorrt*_libs")) if folder.is_dir()]
    return [str(folder) for folder in found]
