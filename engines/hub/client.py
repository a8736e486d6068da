"""Requests to the Hub with huggingface_hub, and its refusals as one-line errors.

huggingface_hub's own downloads discard a file that was interrupted; :meth:`HubClient.append` goes on with it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sd2rt.engines.bundle.files import is_disk_full
from sd2rt.engines.errors import BundleError, MissingDependencyError
from sd2rt.engines.hub.repository import MAIN, Repository
from sd2rt.engines.install_hint import install_hint
from sd2rt.engines.telemetry import import_without_telemetry

_CHUNK_BYTES = 1 << 20
_ATTEMPTS = 5
"""Attempts in a row in which a file does not grow."""
_PAUSE_S = 1.0
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


class MissingFileError(BundleError):
    """The repository has no such file at this revision."""


def import_hub() -> Any:
    """Import huggingface_hub, with its telemetry switched off.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import_without_telemetry("huggingface_hub.constants")
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        raise MissingDependencyError(
            f"the Hub needs huggingface_hub, which is not installed: {install_hint('hub')}"
        ) from None
    return huggingface_hub


class HubClient:
    """One repository on the Hub.

    Raises:
        MissingDependencyError: huggingface_hub is not installed.
    """

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self._hub = import_hub()

    @property
    def api(self) -> Any:
        """huggingface_hub's own client."""
        return self._hub.HfApi()

    @property
    def token(self) -> str | None:
        """The user's token, from the environment or ``hf auth login``."""
        token: str | None = self._hub.get_token()
        return token

    @property
    def is_offline(self) -> bool:
        """True if HF_HUB_OFFLINE forbids requests."""
        return bool(self._hub.is_offline_mode())

    def commit_of(self, path: str) -> str:
        """Commit that the repository's revision is at, by a file that it has.

        Raises:
            BundleError: the Hub cannot be reached, or has no such repository, revision or file for this user.
        """
        url = self._url(path, self.repository.revision or MAIN)
        with self.errors(path):
            commit: str | None = self._hub.get_hf_file_metadata(url).commit_hash
        if commit is None or _COMMIT.fullmatch(commit) is None:
            raise BundleError(
                f"{self._endpoint} did not answer like the Hub (no X-Repo-Commit): check HF_ENDPOINT"
            )
        return commit

    def read(self, path: str, commit: str, limit: int) -> bytes:
        """Contents of a small file.

        Raises:
            BundleError: it cannot be fetched, or has more than ``limit`` bytes.
        """
        content = bytearray()
        with self.errors(path), self._stream(path, commit, 0) as response:
            for chunk in response.iter_bytes(_CHUNK_BYTES):
                content += chunk
                if len(content) > limit:
                    raise BundleError(f"{path} of {self.repository} has more than {limit} bytes")
        return bytes(content)

    def append(
        self, path: str, commit: str, size: int, partial: Path, progress: Callable[[int], None]
    ) -> None:
        """Fetch the rest of a file and append it to ``partial``, which may be missing.

        Never more than a byte beyond ``size`` is written. A broken connection is opened again, from the last byte.

        Args:
            progress: called with the number of bytes of each block; negative if the file starts again.

        Raises:
            BundleError: the file cannot be fetched.
            OSError: it cannot be written.
        """
        failures = 0
        with partial.open("ab") as file, self.errors(path):
            while True:
                before = file.tell()
                try:
                    if self._append_once(path, commit, size, file, progress):
                        return
                except self._hub.errors.HfHubHTTPError:
                    raise
                except self._hub.errors.HTTPError:
                    failures = 0 if file.tell() > before else failures + 1
                    if failures == _ATTEMPTS:
                        raise
                    time.sleep(_PAUSE_S)

    def _append_once(
        self, path: str, commit: str, size: int, file: Any, progress: Callable[[int], None]
    ) -> bool:
        start = file.tell()
        if start > size or (start == size and size > 0):
            return True
        with self._stream(path, commit, start) as response:
            if start and not _continues(response, start):
                # A server without ranges sends the file from its beginning.
                file.seek(0)
                file.truncate()
                progress(-start)
            for chunk in response.iter_bytes(_CHUNK_BYTES):
                # The hash refuses a file that is too long; this keeps it from filling the disk.
                kept = chunk[: size + 1 - file.tell()]
                file.write(kept)
                progress(len(kept))
                if len(kept) < len(chunk):
                    break
            file.flush()
        return True

    @contextmanager
    def _stream(self, path: str, commit: str, start: int) -> Iterator[Any]:
        headers = self._headers() | {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        timeout = self._hub.constants.HF_HUB_DOWNLOAD_TIMEOUT
        url = self._url(path, commit)
        with self._hub.utils.get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
            self._hub.utils.hf_raise_for_status(response)
            yield response

    def _url(self, path: str, revision: str) -> str:
        url: str = self._hub.hf_hub_url(self.repository.id, path, revision=revision)
        return url

    def _headers(self) -> dict[str, str]:
        headers: dict[str, str] = self._hub.utils.build_hf_headers(library_name="sd2rt")
        return headers

    @property
    def _endpoint(self) -> str:
        return str(self._hub.constants.ENDPOINT)

    @contextmanager
    def errors(self, path: str) -> Iterator[None]:
        """Convert refusals of the Hub, and failures on the way to it, to a one-line BundleError.

        Args:
            path: the file that is asked for.
        """
        errors, name = self._hub.errors, self.repository.id
        try:
            yield
        except errors.OfflineModeIsEnabled:
            raise BundleError(
                f"{self.repository} is not on this machine, and HF_HUB_OFFLINE forbids requests to the Hub: unset it"
            ) from None
        except errors.GatedRepoError:
            raise BundleError(
                f"{name} is gated on the Hub: accept its terms on {self._endpoint}/{name}, and log in with "
                "'hf auth login'"
            ) from None
        except errors.RevisionNotFoundError:
            raise BundleError(
                f"{name} has no revision {self.repository.revision or MAIN} on the Hub"
            ) from None
        except errors.EntryNotFoundError:
            raise MissingFileError(f"{self.repository} has no {path} on the Hub") from None
        except errors.RepositoryNotFoundError:
            if self._lacks_owner():
                raise BundleError(
                    f"the Hub has no user or organization {self.repository.user}: check the spelling"
                ) from None
            raise BundleError(
                f"{name} is not on the Hub, or is private: check the spelling, or log in with 'hf auth login'"
            ) from None
        except errors.HfHubHTTPError as error:
            raise BundleError(self._refusal(error)) from None
        except errors.HTTPError as error:
            raise BundleError(
                f"the Hub cannot be reached at {self._endpoint} ({_reason(error)}): check the network; the same "
                "command resumes"
            ) from None
        except OSError as error:
            # Of the file system, which the writer of the bundle explains; or of the network.
            if is_disk_full(error) or error.filename is not None:
                raise
            raise BundleError(
                f"{path} of {self.repository} could not be transferred ({_reason(error)})"
            ) from None

    def _lacks_owner(self) -> bool:
        """Return whether the Hub knows neither a user nor an organization of the repository's first name."""
        errors, owner = self._hub.errors, self.repository.user
        for overview in (self.api.get_user_overview, self.api.get_organization_overview):
            try:
                overview(owner)
            except errors.HfHubHTTPError as error:
                if error.response.status_code != 404:
                    return False
            except errors.HTTPError:
                return False
            else:
                return False
        return True

    def _refusal(self, error: Any) -> str:
        status = error.response.status_code
        said = (
            error.response.headers.get("X-Error-Message")
            or error.server_message
            or error.response.reason_phrase
        )
        reason = f"{status} {_one_line(str(said))}".rstrip()
        if status == 401:
            return (
                f"the Hub refuses this user's token ({reason}): log in again with 'hf auth login', or correct "
                "HF_TOKEN"
            )
        if status == 403:
            return f"this user's token does not allow this in {self.repository.id} ({reason})"
        if status == 429:
            return f"the Hub limits the rate of requests ({reason}): wait, then run the same command, which resumes"
        return f"the Hub failed ({reason}): try again later; the same command resumes"


def _continues(response: Any, start: int) -> bool:
    ranged = str(response.headers.get("Content-Range", ""))
    return response.status_code == 206 and ranged.startswith(f"bytes {start}-")


def _reason(error: Exception) -> str:
    return _one_line(str(error)) or type(error).__name__


def _one_line(text: str) -> str:
    return " ".join(text.split())[:160]
