"""A certificate authority, and signers that it vouches for, as PEM files; needs the extra ``c2pa``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_PEM = serialization.Encoding.PEM
_KEYS = {
    "p-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "p-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "k1": lambda: ec.generate_private_key(ec.SECP256K1()),
}


@dataclass(frozen=True)
class Credentials:
    """Files of a signer."""

    certificate: Path
    key: Path
    root: Path
    """The authority's certificate."""


def make_key(kind: str) -> Any:
    return _KEYS[kind]()


def key_pem(key: Any, password: bytes | None = None) -> bytes:
    encryption: Any = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    data: bytes = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, encryption)
    return data


def make_credentials(folder: Path, kind: str = "p-256", days: float = 30) -> Credentials:
    """Make an authority and a signer whose certificate is valid for some days from now, or expired before."""
    root_key, key = make_key("p-256"), make_key(kind)
    root = _certificate(root_key, "Root", root_key, "Root", 30, authority=True)
    leaf = _certificate(key, "Signer", root_key, "Root", days, authority=False)
    folder.mkdir(parents=True, exist_ok=True)
    files = Credentials(folder / "signer.pem", folder / "signer.key", folder / "root.pem")
    files.root.write_bytes(root.public_bytes(_PEM))
    files.certificate.write_bytes(leaf.public_bytes(_PEM) + root.public_bytes(_PEM))
    files.key.write_bytes(key_pem(key))
    return files


def _certificate(key: Any, name: str, issuer_key: Any, issuer: str, days: float, *, authority: bool) -> Any:
    now = datetime.now(UTC)
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=60))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, **usage
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )
    if not authority:
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(purpose, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _name(name: str) -> Any:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test"),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
