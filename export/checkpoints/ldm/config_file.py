"""The original code's configuration beside a single file: a copy of ``v2-inference-v.yaml`` by the file's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sd2rt.engines.regular_file import open_regular
from sd2rt.engines.text_file import decode_text

SUFFIXES = (".yaml", ".yml")
_MAX_BYTES = 1 << 20
_DEFAULT = "eps"
"""Parameterisation of a configuration that names none."""


def parameterization(path: Path) -> tuple[str, str] | None:
    """Parameterisation that the configuration beside a checkpoint states, and the configuration's name.

    Returns:
        ``v`` or ``eps``, or another word of the file's; None if no configuration lies there.

    Raises:
        ValueError: the file cannot be read, or is not a configuration of the original code.
    """
    found = next((each for suffix in SUFFIXES if (each := path.with_suffix(suffix)).is_file()), None)
    if found is None:
        return None
    try:
        with open_regular(found, _MAX_BYTES) as stream:
            text = decode_text(stream.read())
        content: Any = yaml.safe_load(text)
        stated = content["model"]["params"].get("parameterization", _DEFAULT)
    except OSError as error:
        reason = error.strerror or str(error)
    except (KeyError, TypeError, AttributeError):
        reason = "it has no model.params"
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
    else:
        return str(stated), found.name
    raise ValueError(f"{found.name} beside the file is not a configuration of the original code ({reason})")
