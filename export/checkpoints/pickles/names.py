"""Names that pickles may call: what is replaced by inert objects, and what is refused."""

from __future__ import annotations

CONTAINERS = {"collections.OrderedDict": dict, "collections.Counter": dict, "builtins.set": set}
HARMLESS = {
    "torch.Size",
    "torch.device",
    "_codecs.encode",
    "builtins.complex",
    "torch.serialization._get_layout",
}


DEFAULTS = ("collections.defaultdict",)
ATTRIBUTE = ("builtins.getattr", "__builtin__.getattr")
_VALUES = {
    "set",
    "frozenset",
    "complex",
    "list",
    "dict",
    "tuple",
    "int",
    "float",
    "str",
    "bool",
    "bytes",
    "slice",
    "xrange",
    "range",
}
_REFUSED_MODULES = {
    *(
        "os",
        "posix",
        "nt",
        "subprocess",
        "pty",
        "shutil",
        "sys",
        "signal",
        "socket",
        "tempfile",
        "webbrowser",
    ),
    *("builtins", "__builtin__", "importlib", "runpy", "code", "codeop", "types", "operator", "ctypes", "gc"),
    *(
        "io",
        "_io",
        "pickle",
        "_pickle",
        "marshal",
        "shelve",
        "dill",
        "cloudpickle",
        "joblib",
        "multiprocessing",
    ),
    *("pdb", "bdb", "timeit", "cProfile", "profile", "trace", "asyncio", "threading", "concurrent", "torch"),
}
"""Modules whose functions run code, or reach what does. Nothing is imported: a file that calls them is suspect."""
_INERT_IN_TORCH = ("torch.nn.", "torch.optim.", "torch.utils.data.")
"""Modules of PyTorch of which training programs store objects."""


def may_stand_in(name: str) -> bool:
    """Return whether a call in a pickle may be replaced by an inert object."""
    module, _, last = name.rpartition(".")
    if name == "types.SimpleNamespace":
        return True
    if module in ("builtins", "__builtin__"):
        return last in _VALUES
    return name.startswith(_INERT_IN_TORCH) or name.partition(".")[0] not in _REFUSED_MODULES
