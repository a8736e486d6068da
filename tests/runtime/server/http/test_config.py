"""Options over environment over a file, and every refusal in one line."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.server.http.config import ServerConfig, is_loopback, load_config, named_files


def test_options_over_environment_over_file(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('port = 1\nhost = "::1"\nmax_queue = 3\nlora = { a = "a.safetensors" }\n')
    environment = {"SD2RT_PORT": "2", "SD2RT_MAX_QUEUE": "4", "SD2RT_CACHE_DIR": "/x", "OTHER": "1"}
    config = load_config({"port": 5, "host": None, "device": []}, environment, str(file))
    assert (config.port, config.max_queue, config.host, config.lora) == (5, 4, "::1", {"a": "a.safetensors"})
    assert config.device == ("cpu",)


def test_several_values_in_the_environment() -> None:
    environment = {
        "SD2RT_DEVICE": "cuda:0, cuda:1",
        "SD2RT_API_KEY": "one,two",
        "SD2RT_LORA": "a=x.safetensors,b=y=z",
        "SD2RT_NO_METADATA": "1",
        "SD2RT_MAX_BATCH": "4",
    }
    config = load_config({}, environment)
    assert config.device == ("cuda:0", "cuda:1")
    assert config.keys() == ["one", "two"]
    assert config.lora == {"a": "x.safetensors", "b": "y=z"}
    assert config.no_metadata
    assert config.max_batch == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"port": 70_000}, "port is 70000"),
        ({"bundle": ["demo", "demo"]}, "bundle names demo twice"),
        ({"bundle": [""]}, "no bundle"),
        ({"max_batch": 65}, "max_batch is 65"),
        ({"max_batch": "many"}, "max_batch is 'many'"),
        ({"device": ["tpu"]}, "device is 'tpu'"),
        ({"device": ["cpu", "cpu"]}, "device names cpu twice"),
        ({"max_side": 100}, "max_side is 100"),
        ({"log_format": "xml"}, "log_format is 'xml'"),
        ({"port": 9, "metrics_port": 9}, "both 9"),
        ({"nonsense": 1}, "unknown setting nonsense"),
        ({"body_timeout": float("nan")}, "body_timeout is nan"),
    ],
)
def test_refusals(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as error:
        load_config(options, {})
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_refusal_names_the_origin_and_no_key(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="port in the environment is 'x'"):
        load_config({}, {"SD2RT_PORT": "x"})
    file = tmp_path / "server.toml"
    file.write_text('colour = "red"\n')
    with pytest.raises(RequestError, match=r"unknown setting colour in .*server\.toml"):
        load_config({}, {}, str(file))
    with pytest.raises(RequestError) as error:
        load_config({"api_key": 5_550_123}, {})
    assert "5550123" not in str(error.value)
    for content in (b"port = ", b"\xff", b"[" * 5000):
        file.write_bytes(content)
        with pytest.raises(RequestError, match="is not TOML"):
            load_config({}, {}, str(file))
    with pytest.raises(RequestError, match="cannot be read"):
        load_config({}, {}, str(tmp_path))


def test_keys_of_files(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# operators\n\n first \nsecond\n")
    config = load_config({"api_key": ["zeroth"], "api_key_file": [str(file)]}, {})
    assert config.keys() == ["zeroth", "first", "second"]
    assert "zeroth" not in repr(config)
    file.write_text("# none\n")
    with pytest.raises(RequestError, match="holds no key"):
        config.keys()
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(RequestError, match="cannot be read"):
        config.keys()
    with pytest.raises(RequestError, match="visible ASCII") as error:
        load_config({"api_key": ["schlüssel"]}, {}).keys()
    assert "schl" not in str(error.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_loopback_needs_no_key(host: str) -> None:
    load_config({"host": host}, {}).check_exposure()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "localhost.evil.org", ""])
def test_other_hosts_need_a_key(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(RequestError, match="no key is set"):
        load_config({"host": host}, {}).check_exposure()
    load_config({"host": host, "api_key": ["k"]}, {}).check_exposure()
    load_config({"host": host, "no_auth": True}, {}).check_exposure()
    with pytest.raises(RequestError, match="--no-auth is set and so are keys"):
        load_config({"host": host, "no_auth": True, "api_key": ["k"]}, {}).check_exposure()


@pytest.mark.parametrize("pair", ["a", "=b", "a=", ""])
def test_no_pairs(pair: str) -> None:
    with pytest.raises(RequestError, match="NAME=FILE"):
        named_files([pair])


def test_pairs_of_one_name() -> None:
    with pytest.raises(RequestError, match="two files are named"):
        named_files(["a=b", "a=c"])


def test_every_setting_is_an_option() -> None:
    from sd2rt.runtime.cli import serve_options

    groups = (
        serve_options.ListenOptions,
        serve_options.WorkOptions,
        serve_options.LimitOptions,
        serve_options.MarkOptions,
        serve_options.LogOptions,
    )
    options = [field.name for group in groups for field in fields(group)]
    assert sorted([*options, "bundle"]) == sorted(ServerConfig.model_fields)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_as_editors_save_them(tmp_path: Path, encoding: str) -> None:
    settings, keys = tmp_path / "server.toml", tmp_path / "keys"
    settings.write_bytes("port = 8123\r\nhost = '127.0.0.1'\r\n".encode(encoding))
    keys.write_bytes("# ours\r\nfirst-key\r\nsecond-key\r\n".encode(encoding))
    config = load_config({"api_key_file": [str(keys)]}, {}, str(settings))
    assert config.port == 8123
    assert config.keys() == ["first-key", "second-key"]


def test_files_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes("# one\n# Schlüssel\n".encode("latin-1"))
    for load in (
        lambda: load_config({}, {}, str(path)),
        lambda: load_config({"api_key_file": [str(path)]}, {}).keys(),
    ):
        with pytest.raises(
            RequestError, match=r"not utf-8 text \(.* in line 2\): save it as UTF-8$"
        ) as error:
            load()
        assert "\n" not in str(error.value)
