"""Configuration of the server: options over environment variables over a TOML file."""

from __future__ import annotations

import ipaddress
import os
import tomllib
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from sd2rt.engines.bundle.engine_entry import BackendName
from sd2rt.engines.bundle.schema import ComputePrecision
from sd2rt.engines.errors import RequestError
from sd2rt.engines.printable import printable, repr_of, shown
from sd2rt.engines.regular_file import read_regular
from sd2rt.engines.text_file import decode_text

PREFIX = "SD2RT_"
_MAX_FILE_BYTES = 1 << 20
_LONGEST_KEY = 4096
_MIB = 1 << 20

DeviceName = Annotated[str, Field(pattern=r"^(cpu|cuda(:(0|[1-9][0-9]{0,2}))?)$")]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
NamedFiles = dict[str, str]


class ServerConfig(BaseModel):
    """Everything that an operator can set; each field is an option, an environment variable and a key of the file.

    Sizes are in MiB, times in seconds. Fields of ``api_key`` and ``api_key_file`` add up.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: tuple[str, ...] = ("demo",)
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    metrics_port: int | None = Field(default=None, ge=0, le=65_535)

    device: tuple[DeviceName, ...] = ("cpu",)
    backend: BackendName = "auto"
    precision: ComputePrecision | None = None
    threads: int | None = Field(default=None, ge=1, le=1024)
    allow_cpu_fallback: bool = False
    tile: int | None = Field(default=None, ge=1)
    max_batch: int | Literal["auto"] = "auto"
    keep: Count | None = None
    lora: NamedFiles = {}
    embedding: NamedFiles = {}
    lora_sets: int = Field(default=2, ge=0, le=1000)

    api_key: tuple[SecretStr, ...] = ()
    api_key_file: tuple[str, ...] = ()
    no_auth: bool = False

    max_queue: Count = 64
    max_images: int = Field(default=10, ge=1, le=10)
    max_steps: Annotated[int, Field(ge=1, le=1000)] = 150
    max_side: Annotated[int, Field(ge=64, le=4096, multiple_of=8)] = 1024
    max_body_mb: Annotated[int, Field(ge=1, le=1024)] = 32
    max_bodies_mb: Annotated[int, Field(ge=1, le=65_536)] = 256
    max_image_pixels: Count | None = None
    max_connections: Annotated[int, Field(ge=1, le=65_536)] = 1000
    rate_limit: Annotated[float, Field(gt=0, le=1e6)] | None = None

    header_timeout: Seconds = 10
    body_timeout: Seconds = 60
    write_timeout: Seconds = 60
    keep_alive: Seconds = 75
    shutdown_timeout: Annotated[float, Field(ge=0, le=86_400)] = 120

    job_minutes: Annotated[float, Field(gt=0, le=100_000)] = 60
    job_mb: Annotated[int, Field(ge=1, le=65_536)] = 64

    no_metadata: bool = False
    watermark: Literal["sdv2", "none"] = "none"
    c2pa_cert: str | None = None
    c2pa_key: str | None = None
    safety: str | None = None
    log_format: Literal["auto", "json", "text"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def max_body_bytes(self) -> int:
        return self.max_body_mb * _MIB

    @property
    def max_bodies_bytes(self) -> int:
        """Bytes of all request bodies that are held at once."""
        return self.max_bodies_mb * _MIB

    @property
    def job_bytes(self) -> int:
        return self.job_mb * _MIB

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if isinstance(self.max_batch, int) and not 1 <= self.max_batch <= 64:
            raise ValueError(f"max_batch is {self.max_batch}: use auto, or 1 to 64")
        if not self.bundle or "" in self.bundle:
            raise ValueError("no bundle is named: name at least one, such as demo")
        for name in ("bundle", "device"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names {shown(_repeated(values))} twice: name each once")
        if self.metrics_port is not None and self.metrics_port == self.port != 0:
            raise ValueError(f"port and metrics_port are both {self.port}: use two ports")
        if (self.c2pa_cert is None) != (self.c2pa_key is None):
            raise ValueError("c2pa_cert and c2pa_key belong together: set both, or neither")
        if self.no_metadata and self.c2pa_cert is not None:
            raise ValueError(
                "no_metadata leaves out all metadata, and c2pa_cert signs with some: set one of them"
            )
        return self

    def keys(self) -> list[str]:
        """Return all API keys, those of files included.

        Raises:
            RequestError: a file cannot be read or holds no key, or a key is no visible ASCII.
        """
        keys = [key.get_secret_value() for key in self.api_key]
        for path in self.api_key_file:
            keys += _keys_of_file(path)
        for key in keys:
            if not key or len(key) > _LONGEST_KEY or not (key.isascii() and key.isprintable()) or " " in key:
                # Never shows the key.
                raise RequestError(
                    "an API key is empty, too long, or not of visible ASCII characters: use another"
                )
        return keys

    def check_exposure(self) -> None:
        """Check that strangers cannot reach the server without a key.

        Raises:
            RequestError: the host is not loopback, and there is neither a key nor ``no_auth``.
        """
        if not self.no_auth and not self.api_key and not self.api_key_file and not is_loopback(self.host):
            raise RequestError(
                f"--host {printable(self.host)} can be reached from other machines, and no key is set: set "
                "--api-key, --api-key-file or SD2RT_API_KEY, or allow everybody with --no-auth"
            )
        if self.no_auth and (self.api_key or self.api_key_file):
            raise RequestError("--no-auth is set and so are keys: leave one out")


def is_loopback(host: str) -> bool:
    """Return whether an address is reachable from this machine only; other names than ``localhost`` are not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load_config(
    options: Mapping[str, Any], environment: Mapping[str, str] = os.environ, file: str | None = None
) -> ServerConfig:
    """Merge options over environment variables over a TOML file.

    Args:
        options: values by field; None and empty lists were not given.
        environment: ``SD2RT_<FIELD>``; several values are separated by commas, ``NAME=FILE`` pairs too.
        file: path of a TOML file whose keys are fields; None for none.

    Raises:
        RequestError: a value is invalid; the message names its origin.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, found in (
        (f"in {file}", {} if file is None else _of_file(file)),
        ("in the environment", _of_environment(environment)),
        ("", {name: value for name, value in options.items() if value is not None and value != []}),
    ):
        for name, value in found.items():
            values[name] = value
            origins[name] = origin
    try:
        return ServerConfig.model_validate(values)
    except ValidationError as error:
        raise RequestError(one_line(error, origins)) from None


def _of_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, annotation in typing.get_type_hints(ServerConfig).items():
        text = environment.get(PREFIX + name.upper()) if name in ServerConfig.model_fields else None
        if text:
            found[name] = parsed(text, annotation)
    return found


def parsed(text: str, annotation: Any) -> Any:
    """Split a text by commas if a field of this type has several values.

    Raises:
        RequestError: a part is no ``NAME=FILE`` pair, and should be.
    """
    if typing.get_origin(annotation) is tuple:
        return [part for part in (part.strip() for part in text.split(",")) if part]
    if annotation == NamedFiles:
        return named_files(text.split(","))
    return text


NAMED_FILES = ("lora", "embedding")
"""Settings of the type :data:`NamedFiles`."""


def named_files(pairs: list[str]) -> dict[str, str]:
    """Parse ``NAME=FILE`` pairs.

    Raises:
        RequestError: one is no pair, or two have one name.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, path = pair.strip().partition("=")
        if not (name and equals and path):
            raise RequestError(f"{shown(repr(pair))} is not NAME=FILE, such as style=style.safetensors")
        if name in found:
            raise RequestError(f"two files are named {shown(repr(name))}: use another name for one of them")
        found[name] = path
    return found


def _of_file(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(decode_text(read_regular(path, _MAX_FILE_BYTES)))
    except OSError as error:
        raise RequestError(f"--config {printable(path)} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"--config {printable(path)} is not TOML: {printable(error)}") from None


def _keys_of_file(path: str) -> list[str]:
    try:
        text = decode_text(read_regular(path, _MAX_FILE_BYTES))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"it is {printable(error)}"
        raise RequestError(f"--api-key-file {printable(path)} cannot be read: {reason}") from None
    keys = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise RequestError(f"--api-key-file {printable(path)} holds no key: write one a line")
    return keys


def _repeated(values: tuple[str, ...]) -> str:
    return next(value for value in values if values.count(value) > 1)


_HINTS = {"device": "use cpu, cuda or cuda:N"}


def one_line(
    error: ValidationError, origins: Mapping[str, str], model: type[ServerConfig] = ServerConfig
) -> str:
    """Describe the first of a configuration's errors.

    Args:
        error: of validating ``model``.
        origins: where values come from, by field.
    """
    first = error.errors()[0]
    reason = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return reason
    name = str(first["loc"][0])
    origin = f" {origins[name]}" if origins.get(name) else ""
    reason = _HINTS.get(name, reason)
    if first["type"] == "extra_forbidden":
        return f"unknown setting {shown(name)}{origin}: choose from {', '.join(model.model_fields)}"
    # A value could be a key.
    secret = "" if name == "api_key" else f" is {shown(repr_of(first['input']))}"
    return f"{name}{origin}{secret}: {reason[0].lower()}{reason[1:]}"
