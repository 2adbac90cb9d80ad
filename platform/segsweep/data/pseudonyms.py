"""Names for cases and patients that say nothing about them: keyed hashes, with a key that stays with the user."""

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

from segsweep.errors import InputError

VARIABLE = "SEGSWEEP_CASE_KEY"
LEAST_CHARACTERS = 16
LENGTH = 12


def project_key() -> bytes:
    """The key in `SEGSWEEP_CASE_KEY`, else in the user's own `segsweep/case-key` below the configuration folder.

    That file is made at the first use, readable by the user alone. The same key gives the same names: people who convert the same
    patients into one project share it, and nobody without it can go from a name back to a patient.

    Raises InputError for a short key and a file that cannot be used.
    """
    text = os.environ.get(VARIABLE)
    if text is not None:
        return _key(text, source=VARIABLE)
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "segsweep"
    path = folder / "case-key"
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _make(path)
        return _key(path.read_text(encoding="utf-8"), source=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be made or read ({type(error).__name__}); expected a key for the names of cases; set {VARIABLE}"
        ) from None


def pseudonym(*identifiers: str, key: bytes) -> str:
    """Twelve hexadecimal digits of the HMAC-SHA256 of the identifiers."""
    message = b"".join(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in identifiers)
    return hmac.new(key, message, hashlib.sha256).hexdigest()[:LENGTH]


def _make(path: Path) -> None:
    """Write a new key under a name of its own and link it into place, so that of several processes one wins."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32) + "\n")
    with suppress(FileExistsError):
        os.link(partial, path)
    partial.unlink()


def _key(text: str, *, source: str) -> bytes:
    key = text.strip().encode()
    if len(key) < LEAST_CHARACTERS:
        raise InputError(
            f"{source}: holds a key of {len(key)} characters; expected at least {LEAST_CHARACTERS}; "
            "set a long random text"
        )
    return key
