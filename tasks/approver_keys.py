"""Approvers' keys: ed25519 key pairs, the private half in a file for its owner alone."""

import base64
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.errors import BadInputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["PassphraseNeededError", "load_key", "new_key", "public_key_of", "write_new"]

_LONGEST = 32_768
_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"


class PassphraseNeededError(BadInputError):
    """The key has a passphrase, and none was given."""


def new_key(path: Path, passphrase: bytes | None) -> str:
    """Make a key pair, write the private key for its owner alone, and answer the public key's text.

    Raises:
        BadInputError: there is a file already, or none can be written there.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption(),
    )
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_new(staged, pem, mode=0o600)
        try:
            # Unlike a rename, a link never takes the place of what is there.
            os.link(staged, path)
        finally:
            staged.unlink()
    except OSError as error:
        if path.is_file():
            raise BadInputError(
                f"{path}: there is a file already, and a key that is written over is lost; name another file"
            ) from None
        raise BadInputError(f"{path}: the key cannot be written: {error.strerror}") from None
    return public_key_of(key)


def load_key(path: Path, passphrase: bytes | None) -> "Ed25519PrivateKey":
    """A private key from its file; a passphrase that the key does not have is left aside.

    Raises:
        PassphraseNeededError: it has a passphrase, and none was given.
        BadInputError: there is no such file, others may read it, it holds no ed25519 key, or the passphrase is wrong.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            pem = file.read(_LONGEST)
    except OSError as error:
        raise BadInputError(f"{path}: the key cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise BadInputError(
            f"{path}: others than its owner may use this key (mode {mode:03o}); run chmod 600, and make a new "
            "key if somebody may have read it"
        )
    encrypted = _ENCRYPTED in pem
    if encrypted and not passphrase:
        raise PassphraseNeededError(f"{path}: this key has a passphrase, and none was given")
    try:
        key = load_pem_private_key(pem, passphrase if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        what = "the passphrase is wrong, or the file is damaged" if encrypted else "this is no private key"
        raise BadInputError(f"{path}: {what}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise BadInputError(f"{path}: this is a key of another kind than ed25519; make one with `keys new`")
    return key


def public_key_of(key: "Ed25519PrivateKey") -> str:
    """The public key's text, as an environment's approvers have it."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that is not there yet, through to the disk.

    Raises:
        OSError: there is one, or the disk refuses.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
