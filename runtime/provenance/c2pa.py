"""Sign pictures with C2PA manifests, and validate them, by the package c2pa-python (extra ``c2pa``).

Nothing is fetched: neither timestamps for a signature, nor revocations and remote manifests for its validation.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from sd2rt.engines.errors import EngineError, MissingDependencyError, RequestError
from sd2rt.engines.install_hint import install_hint
from sd2rt.engines.path_argument import checked_path
from sd2rt.engines.printable import shown
from sd2rt.engines.regular_file import read_regular
from sd2rt.runtime.provenance.xmp import VOCABULARY, SourceType

if TYPE_CHECKING:
    import os

    from sd2rt.runtime.images.formats import FileFormat

ManifestState: TypeAlias = Literal["trusted", "valid", "invalid"]
"""``valid``: intact, by a signer that no given authority vouches for."""

_MAX_PEM_BYTES = 1 << 20
_SETTINGS: dict[str, Any] = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
}
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


@dataclass(frozen=True, slots=True)
class Signer:
    """A certificate chain and its private key. Any thread may sign."""

    certificates: bytes = field(repr=False)
    """PEM: the signer's certificate first."""
    key: bytes = field(repr=False)
    """PEM, without a passphrase."""
    algorithm: str
    """By C2PA's name, such as ``es256``."""

    @classmethod
    def of(cls, certificates: str | os.PathLike[str], key: str | os.PathLike[str]) -> Signer:
        """Read a signer's PEM files, and sign a picture of one pixel on trial.

        Raises:
            RequestError: a file cannot be read, or the two cannot sign.
            MissingDependencyError: c2pa-python is not installed.
        """
        _library()
        chain, secret = _read_pem(certificates, "certificate"), _read_pem(key, "key")
        signer = cls(chain, secret, _algorithm(secret, str(key)))
        try:
            signed = signer.sign(_pixel(), "png", "trainedAlgorithmicMedia")
            manifest = read_manifest(signed)
        except EngineError as error:
            raise RequestError(str(error)) from None
        if manifest is None or manifest.state == "invalid":
            problem = "its manifest is missing" if manifest is None else ", ".join(manifest.problems)
            raise RequestError(
                f"{shown(str(certificates))} and {shown(str(key))} sign invalidly ({shown(problem)}): use a "
                "certificate for C2PA, and its own key"
            )
        return signer

    def sign(self, data: bytes, file_format: FileFormat, source_type: SourceType) -> bytes:
        """Return the bytes of an image file with a signed manifest that covers all of them.

        Raises:
            EngineError: signing failed, for example since the certificate has expired.
        """
        c2pa = _library()
        agent = {"name": "sd2rt", "version": version("sd2rt")}
        created = {
            "action": "c2pa.created",
            "digitalSourceType": VOCABULARY + source_type,
            "softwareAgent": agent,
        }
        manifest = {
            "claim_generator_info": [agent],
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [created]}}],
        }
        signed = io.BytesIO()
        try:
            info = c2pa.C2paSignerInfo(self.algorithm, self.certificates, self.key, None)
            with (
                c2pa.Context.from_dict(_SETTINGS) as context,
                c2pa.Signer.from_info(info) as signer,
                c2pa.Builder.from_json(manifest, context) as builder,
            ):
                builder.sign(signer, f"image/{file_format}", io.BytesIO(data), signed)
        except c2pa.C2paError as error:
            raise EngineError(
                f"the picture cannot be signed ({_reason(error)}): check the C2PA certificate and its key"
            ) from None
        return signed.getvalue()


@dataclass(frozen=True, slots=True)
class Manifest:
    """The active C2PA manifest of an image file, as far as it is reported."""

    state: ManifestState
    signer: str | None
    """Organization and name in the signer's certificate."""
    source_type: str | None
    """IPTC's term in the first action that has one."""
    problems: tuple[str, ...] = ()
    """C2PA's codes of what failed; that no authority vouches for the signer is not among them."""


def read_manifest(data: bytes, authorities: bytes | None = None) -> Manifest | None:
    """Validate the C2PA manifest in the bytes of an image file.

    Args:
        authorities: PEM certificates of authorities that are trusted, as :func:`read_authorities` returns them.

    Returns:
        None if there is no manifest.

    Raises:
        MissingDependencyError: c2pa-python is not installed.
    """
    c2pa = _library()
    settings = _SETTINGS
    if authorities is not None:
        settings = {
            **_SETTINGS,
            "trust": {"trust_anchors": authorities.decode("ascii", errors="replace")},
            "verify": {**_SETTINGS["verify"], "verify_trust": True},
        }
    with c2pa.Context.from_dict(settings) as context:
        try:
            reader = c2pa.Reader.try_create(None, io.BytesIO(data), context=context)
        except c2pa.C2paError as error:
            # Damaged beyond validation.
            return Manifest("invalid", None, None, (_reason(error),))
        if reader is None:
            return None
        with reader:
            active = reader.get_active_manifest() or {}
            state: str = reader.get_validation_state() or "Invalid"
            results = reader.get_validation_results() or {}
    failures = results.get("activeManifest", {}).get("failure", ())
    codes = [str(failure.get("code")) for failure in failures]
    return Manifest(
        _STATES.get(state, "invalid"),
        _signer_in(active),
        _source_type_in(active),
        tuple(code for code in codes if code != "signingCredential.untrusted"),
    )


_STATES: dict[str, ManifestState] = {"Trusted": "trusted", "Valid": "valid"}


def _signer_in(manifest: dict[str, Any]) -> str | None:
    info = manifest.get("signature_info") or {}
    names = [str(info[name]) for name in ("issuer", "common_name") if info.get(name)]
    return ", ".join(names) or None


def _source_type_in(manifest: dict[str, Any]) -> str | None:
    for assertion in manifest.get("assertions", ()):
        data = assertion.get("data")
        actions = data.get("actions", ()) if isinstance(data, dict) else ()
        for action in actions:
            source_type = action.get("digitalSourceType")
            if isinstance(source_type, str):
                return source_type.rpartition("/")[2]
    return None


def _library() -> Any:
    try:
        import c2pa
    except ImportError as error:
        raise MissingDependencyError(
            f"C2PA manifests need c2pa-python ({error}): {install_hint('c2pa')}"
        ) from None
    return c2pa


def _algorithm(key: bytes, name: str) -> str:
    """Name the algorithm for a private key.

    Raises:
        RequestError: it is no private key that C2PA has an algorithm for.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(key, None)
    except TypeError:
        raise RequestError(f"{shown(name)} is encrypted: give a key without a passphrase") from None
    except Exception:
        # What the parser raises on damaged keys is not documented in full.
        raise RequestError(
            f"{shown(name)} is no private key in PEM: name the key of the certificate"
        ) from None
    if isinstance(private, EllipticCurvePrivateKey) and private.curve.name in _CURVES:
        return _CURVES[private.curve.name]
    if isinstance(private, RSAPrivateKey):
        return "ps256"
    if isinstance(private, Ed25519PrivateKey):
        return "ed25519"
    raise RequestError(
        f"{shown(name)} is a key of a kind that C2PA does not use: use one for ECDSA (P-256, P-384, P-521), RSA or "
        "Ed25519"
    )


def read_authorities(path: str | os.PathLike[str]) -> bytes:
    """Read PEM certificates of trusted authorities.

    Raises:
        RequestError: the file cannot be read, or is not PEM.
        MissingDependencyError: c2pa-python is not installed.
    """
    _library()
    from cryptography.x509 import load_pem_x509_certificates

    content = _read_pem(path, "authority")
    try:
        # c2pa-python takes what is no certificate without a word.
        load_pem_x509_certificates(content)
    except ValueError:
        raise RequestError(
            f"the C2PA authority {shown(str(path))} holds no certificate: name a file of PEM certificates"
        ) from None
    return content


def _read_pem(path: str | os.PathLike[str], role: str) -> bytes:
    path = checked_path(path, f"the {role}")
    try:
        content = read_regular(path, _MAX_PEM_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"the C2PA {role} {shown(str(path))} cannot be read: {reason}") from None
    if b"-----BEGIN " not in content:
        raise RequestError(f"the C2PA {role} {shown(str(path))} is not PEM: name a file in that format")
    return content


def _reason(error: Exception) -> str:
    return shown(" ".join(str(error).split()), 200) or type(error).__name__


def _pixel() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    return file.getvalue()
