"""Recognise by its first bytes what a file is, rather than weights."""

from __future__ import annotations

_DOWNLOAD = "download the file itself"
_EXTRACT = "extract the checkpoint from it"

_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "a gzip archive", _EXTRACT),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _EXTRACT),
    (b"Rar!", "a RAR archive", _EXTRACT),
    (b"\xfd7zXZ\0", "an xz archive", _EXTRACT),
    (b"BZh", "a bzip2 archive", _EXTRACT),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive", _EXTRACT),
    (
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file, as TensorFlow writes them",
        "use the PyTorch or safetensors weights",
    ),
    (b"\x93NUMPY", "a NumPy array", "use the PyTorch or safetensors weights"),
    (b"\x89PNG", "a PNG picture", _DOWNLOAD),
    (b"\xff\xd8\xff", "a JPEG picture", _DOWNLOAD),
    (b"%PDF-", "a PDF", _DOWNLOAD),
)
_TAR_MARK, _TAR_OFFSET = b"ustar", 257
HEADER_BYTES = 512


def described(start: bytes) -> tuple[str, str] | None:
    """Return what a file that begins so is, and the remedy; None for what may be weights."""
    for signature, name, remedy in _SIGNATURES:
        if start.startswith(signature):
            return name, remedy
    if start[_TAR_OFFSET:].startswith(_TAR_MARK):
        return "a tar archive", _EXTRACT
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page", f"{_DOWNLOAD}, not the page about it"
    if text.startswith((b"{", b"[")):
        return "JSON text, such as a configuration or a server's error", _DOWNLOAD
    if text and all(byte in b"\t\n\r" or 0x20 <= byte < 0x7F for byte in text):
        return "text", _DOWNLOAD
    return None
