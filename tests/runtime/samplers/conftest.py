from __future__ import annotations

from collections.abc import Iterator

import diffusers
import pytest
import torch


@pytest.fixture(autouse=True)
def _one_quiet_thread() -> Iterator[None]:
    """One thread, because the tensors are tiny, and no diffusers warnings about options that it rewrites."""
    threads, verbosity = torch.get_num_threads(), diffusers.logging.get_verbosity()
    torch.set_num_threads(1)
    diffusers.logging.set_verbosity_error()
    yield
    torch.set_num_threads(threads)
    diffusers.logging.set_verbosity(verbosity)
