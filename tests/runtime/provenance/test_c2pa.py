"""C2PA manifests, validated by c2pa's own reader with the root of an authority made here."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.recording.pictures import natural
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.images.encode import encode
from sd2rt.runtime.images.read import MAX_PIXELS, decode_with_texts
from sd2rt.runtime.provenance.c2pa import Signer, read_authorities, read_manifest
from sd2rt.runtime.provenance.xmp import VOCABULARY, read_source_type, xmp_packet

pytest.importorskip("c2pa", reason="c2pa-python is not installed (extra c2pa)")

from benchmarks.recording.authority import Credentials, key_pem, make_credentials, make_key

FORMATS: Any = ("png", "jpeg", "webp")


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    return make_credentials(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def signer(credentials: Credentials) -> Signer:
    return Signer.of(credentials.certificate, credentials.key)


def encoded(file_format: Any) -> bytes:
    image = Image.fromarray(natural(96, 64, seed=2))
    xmp = xmp_packet("trainedAlgorithmicMedia")
    return encode(image, file_format, {"parameters": "a fox"}, comment="a fox", xmp=xmp)


@pytest.mark.parametrize("file_format", FORMATS)
def test_is_valid_by_c2pas_reader(file_format: Any, credentials: Credentials, signer: Signer) -> None:
    import c2pa

    data = signer.sign(encoded(file_format), file_format, "compositeWithTrainedAlgorithmicMedia")
    trust = {"trust": {"trust_anchors": credentials.root.read_text()}, "verify": {"verify_trust": True}}
    for settings, state in ((trust, "Trusted"), ({}, "Valid")):
        context: Any = c2pa.Context.from_dict(settings)
        reader = c2pa.Reader(f"image/{file_format}", io.BytesIO(data), context=context)
        assert reader.get_validation_state() == state
    active: Any = reader.get_active_manifest()
    (action,) = active["assertions"][0]["data"]["actions"]
    assert action["action"] == "c2pa.created"
    assert action["digitalSourceType"] == f"{VOCABULARY}compositeWithTrainedAlgorithmicMedia"
    assert action["softwareAgent"]["name"] == "sd2rt"


@pytest.mark.parametrize("file_format", FORMATS)
def test_states(file_format: Any, credentials: Credentials, signer: Signer) -> None:
    plain = encoded(file_format)
    assert read_manifest(plain) is None
    data = signer.sign(plain, file_format, "trainedAlgorithmicMedia")
    manifest = read_manifest(data)
    assert manifest is not None
    assert (manifest.state, manifest.signer, manifest.problems) == ("valid", "Test, Signer", ())
    assert manifest.source_type == "trainedAlgorithmicMedia"
    trusted = read_manifest(data, read_authorities(credentials.root))
    assert trusted is not None
    assert trusted.state == "trusted"


@pytest.mark.parametrize("file_format", FORMATS)
def test_altered_bytes_are_invalid(file_format: Any, signer: Signer) -> None:
    data = signer.sign(encoded(file_format), file_format, "trainedAlgorithmicMedia")
    # In the text, in the packet and in the last bytes of the pixels.
    for position in (data.rindex(b"RDF"), data.index(b"x:xmpmeta") + 2, len(data) - 20):
        altered = bytearray(data)
        altered[position] ^= 1
        manifest = read_manifest(bytes(altered))
        assert manifest is not None
        assert manifest.state == "invalid"
        assert manifest.problems


@pytest.mark.parametrize("file_format", FORMATS)
def test_all_else_is_kept(file_format: Any, signer: Signer) -> None:
    plain = encoded(file_format)
    before, texts, xmp = decode_with_texts(plain, "the image", MAX_PIXELS)
    signed = signer.sign(plain, file_format, "trainedAlgorithmicMedia")
    after, signed_texts, signed_xmp = decode_with_texts(signed, "the image", MAX_PIXELS)
    np.testing.assert_array_equal(np.asarray(before), np.asarray(after))
    assert signed_texts == texts
    assert read_source_type(signed_xmp) == read_source_type(xmp) == "trainedAlgorithmicMedia"


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [("p-384", "es384"), ("p-521", "es512"), ("rsa", "ps256"), ("ed25519", "ed25519")],
)
def test_kinds_of_keys(kind: str, algorithm: str, tmp_path: Path) -> None:
    files = make_credentials(tmp_path, kind)
    signer = Signer.of(files.certificate, files.key)
    assert signer.algorithm == algorithm
    manifest = read_manifest(
        signer.sign(encoded("png"), "png", "trainedAlgorithmicMedia"), files.root.read_bytes()
    )
    assert manifest is not None
    assert manifest.state == "trusted"


def test_keys_are_not_shown(signer: Signer) -> None:
    assert "PRIVATE" not in repr(signer)
    assert "BEGIN" not in repr(signer)


def test_what_cannot_sign_is_refused(credentials: Credentials, tmp_path: Path) -> None:
    expired = make_credentials(tmp_path / "expired", days=-3)
    other = make_credentials(tmp_path / "other")
    encrypted, unusual, text = (tmp_path / name for name in ("encrypted.key", "k1.key", "text.pem"))
    encrypted.write_bytes(key_pem(make_key("p-256"), b"secret"))
    unusual.write_bytes(key_pem(make_key("k1")))
    text.write_text("no key")
    damaged = tmp_path / "damaged.key"
    damaged.write_bytes(credentials.key.read_bytes()[:100] + b"\n-----END PRIVATE KEY-----\n")
    cases = [
        (credentials.certificate, other.key, "sign"),
        (expired.certificate, expired.key, "sign"),
        (credentials.certificate, encrypted, "is encrypted: give a key without a passphrase"),
        (credentials.certificate, unusual, "a key of a kind that C2PA does not use"),
        (credentials.certificate, text, "is not PEM"),
        (credentials.certificate, damaged, "is no private key in PEM"),
        (credentials.certificate, tmp_path / "missing", "cannot be read: No such file"),
        (credentials.certificate, credentials.certificate, "is no private key in PEM"),
        (credentials.key, credentials.key, "sign"),
    ]
    for certificate, key, said in cases:
        with pytest.raises(RequestError, match=said) as caught:
            Signer.of(certificate, key)
        assert "\n" not in str(caught.value)


def test_authorities_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "a.pem"
    file.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(RequestError, match="holds no certificate"):
        read_authorities(file)
