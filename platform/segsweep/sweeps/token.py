"""The token that clusters ask for: found where Ray looks for it, made where there is none, readable by its owner alone."""

import os
import secrets
from pathlib import Path

from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  compiled

# Ray's names. A token in the environment counts before one in a file.
MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
DEFAULT_PATH = "~/.ray/auth_token"
FILE_MODE, FOLDER_MODE = 0o600, 0o700


def token_file() -> Path:
    """Where the token lies, whether it is there or not."""
    return Path(os.environ.get(TOKEN_PATH) or DEFAULT_PATH).expanduser()


def find_token() -> str:
    """The token of this user, empty where there is none."""
    given = os.environ.get(TOKEN, "").strip()
    return given or (token_file().read_text().strip() if token_file().is_file() else "")


def keep_token() -> Path:
    """Make the token's file where there is none, and close it to others: Ray writes it readable by all (2.60)."""
    path = token_file()
    path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    if not path.exists():
        _write(path)
    _close(path, mode=FILE_MODE)
    if path == Path(DEFAULT_PATH).expanduser():
        _close(path.parent, mode=FOLDER_MODE)
    return path


def use_token() -> str:
    """Have this process and those that it starts show the token, where there is one and RAY_AUTH_MODE says nothing else.

    Ray's clients do so by themselves only where no address is given. Returns the token that they show, empty for none.
    """
    token = find_token()
    if token:
        os.environ.setdefault(MODE, "token")
    # Ray has read both when it was imported.
    AuthenticationTokenLoader.instance().reset_cache()
    Config.initialize("")
    return token if os.environ.get(MODE, "").lower() == "token" else ""


def _write(path: Path) -> None:
    """Whole or not at all, and never over the token of another process that had the same thought."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            return
    finally:
        draft.unlink()


def _close(path: Path, *, mode: int) -> None:
    """Take rights from others; on files of another user that is theirs to do."""
    found = path.stat()
    if found.st_uid == os.getuid() and found.st_mode & 0o077:
        path.chmod(mode)
