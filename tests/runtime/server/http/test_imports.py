"""Modules of the front process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_front_loads_no_engine(tmp_path: Path) -> None:
    """Each of these would cost memory in a process that only passes bytes on."""
    code = (
        "import sys\n"
        "import sd2rt.runtime.server.http.http_server, sd2rt.runtime.server.worker_client\n"
        "unwanted = {'numpy', 'PIL', 'tokenizers', 'onnxruntime', 'openvino', 'torch', 'rich.progress'}\n"
        "loaded = unwanted & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, check=True, timeout=60)
