"""A worker whose denoiser has faults at images of some widths; its sessions are the real ones otherwise.

At 192 pixels it runs out of memory, at 256 it kills its process, and at 320 its state is not finite.
"""

from __future__ import annotations

import os
import signal
import sys

import numpy as np

from sd2rt.engines.errors import OutOfMemoryError
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeSession
from sd2rt.runtime.server.worker.__main__ import main

launch = OnnxRuntimeSession.launch


def faulty(self: OnnxRuntimeSession) -> None:
    if "state" in self.buffers:
        state = self.buffers["state"].host
        match 8 * state.shape[-1]:
            case 192:
                raise OutOfMemoryError("denoiser: out of memory: ask for a smaller size")
            case 256:
                os.kill(os.getpid(), signal.SIGKILL)
            case 320:
                state[:] = np.nan
    launch(self)


if __name__ == "__main__":
    OnnxRuntimeSession.launch = faulty  # type: ignore[method-assign]
    sys.exit(main())
