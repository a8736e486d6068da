"""Docstrings' roles, such as :meth:`open`, as the site's pages show them: `open`."""

from __future__ import annotations

import re
from typing import Any

from griffe import Docstring, Extension, Object

_ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")


class Roles(Extension):
    """Replace roles in every docstring that is read."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        if isinstance(obj.docstring, Docstring):
            obj.docstring.value = _ROLE.sub(
                lambda role: f"`{role[1].rpartition('.')[2]}`", obj.docstring.value
            )
