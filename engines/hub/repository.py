"""Names of repositories on the Hub: `user/name`, or `user/name@revision`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sd2rt.engines.errors import RequestError

MAIN = "main"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_REFERENCE = re.compile(rf"(?P<user>{_NAME})/(?P<name>{_NAME})(@(?P<revision>[^\s@]+))?")
_LONGEST = 96
"""Characters of a repository's id on the Hub."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository at a revision: a branch, a tag or a commit; None for the branch ``main``."""

    user: str
    name: str
    revision: str | None

    @property
    def id(self) -> str:
        """The repository's id, without the revision."""
        return f"{self.user}/{self.name}"

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"


def parse_repository(text: str) -> Repository:
    """Parse ``user/name`` or ``user/name@revision``.

    Raises:
        RequestError: it is neither.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None or not _is_valid(f"{match['user']}/{match['name']}"):
        raise RequestError(f"{text!r} is no repository on the Hub: write user/name or user/name@revision")
    return Repository(match["user"], match["name"], match["revision"])


def _is_valid(repository: str) -> bool:
    """Rules of the Hub beyond its characters."""
    names = repository.split("/")
    return (
        len(repository) <= _LONGEST
        and not any(pair in repository for pair in ("--", ".."))
        and not any(name.endswith((".", "-")) for name in names)
        and not repository.endswith(".git")
    )
