"""Personal data as it is kept: a keyed digest in place of each value, the same at ingest, in serving and in its log."""

import hmac
import os
import secrets
from pathlib import Path


def keyed_hash(value: str, key: bytes) -> str:
    """HMAC-SHA256 of a text under a key, 32 hexadecimal digits.

    Equal values stay equal, and without the key no list of guesses gives them back.
    """
    return hmac.digest(key, value.encode(), "sha256").hex()[:32]


def personal_data_key(root: Path) -> bytes:
    """The key of one data root: CONTENDER_PII_KEY, or a random one made once, for its owner's eyes only."""
    given = os.environ.get("CONTENDER_PII_KEY")
    if given:
        return given.encode()
    path = root / "secrets" / "pii.key"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_suffix(f".{os.getpid()}.{secrets.token_hex(4)}")
        made.touch(mode=0o600)
        made.write_text(secrets.token_hex(32))
        try:
            os.link(made, path)
        except FileExistsError:
            pass
        finally:
            made.unlink()
    return path.read_text().encode()
