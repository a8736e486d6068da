"""An sd2rt command that is interrupted (Ctrl-C) or ended by another signal after some launches of an engine."""

from __future__ import annotations

import signal
import subprocess
import sys

_CODE = """
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeSession as session
from sd2rt.launch import script
launch = session.launch
def reported(self): launch(self); print('launched', flush=True)
session.launch = reported; script()
"""


def interrupted_after(
    launches: int, *words: object, number: signal.Signals = signal.SIGINT
) -> tuple[int, str]:
    """Exit code and standard error of ``sd2rt`` with these words, ended by a signal after so many launches."""
    with subprocess.Popen(
        [sys.executable, "-c", _CODE, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        for _ in range(launches):
            assert child.stdout.readline() == "launched\n"
        child.send_signal(number)
        _, err = child.communicate()
    return child.returncode, err
