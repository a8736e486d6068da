"""Set configuration entries of ONNX Runtime sessions and runs, which silently accepts unknown keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import onnxruntime

SessionKey = Literal[
    "session.intra_op.allow_spinning",
    "session.intra_op.spin_backoff_max",
    "session.intra_op.spin_duration_us",
    "session.optimized_model_external_initializers_file_name",
    "session.optimized_model_external_initializers_min_size_in_bytes",
    "session.record_ep_graph_assignment_info",
    "session.save_external_prepacked_constant_initializers",
    "session.use_device_allocator_for_initializers",
    "session.use_env_allocators",
]
"""The session keys in use; a test looks for them in the installed ONNX Runtime."""

RunKey = Literal[
    "disable_synchronize_execution_providers",
    "gpu_graph_id",
    "memory.enable_memory_arena_shrinkage",
]
"""The run keys in use."""


def set_session_config(options: onnxruntime.SessionOptions, key: SessionKey, value: str) -> None:
    """Set an entry of a session's configuration.

    Raises:
        ValueError: the key is not a :data:`SessionKey`.
    """
    _check(key, get_args(SessionKey))
    options.add_session_config_entry(key, value)


def fix_dimensions(options: onnxruntime.SessionOptions, sizes: Mapping[str, int]) -> None:
    """Fix open dimensions of a graph, by names from :func:`~sd2rt.engines.onnxruntime.fixed_sizes.open_dimensions`.

    ONNX Runtime would accept unknown names too, without effect.
    """
    for name, size in sizes.items():
        options.add_free_dimension_override_by_name(name, size)


def set_run_config(options: onnxruntime.RunOptions, key: RunKey, value: str) -> None:
    """Set an entry of a run's configuration.

    Raises:
        ValueError: the key is not a :data:`RunKey`.
    """
    _check(key, get_args(RunKey))
    options.add_run_config_entry(key, value)


def _check(key: str, keys: tuple[str, ...]) -> None:
    if key not in keys:
        raise ValueError(f"ONNX Runtime would ignore the unknown configuration key {key!r}")
