"""Databases by their address: what may be said of one, and whether it can be used, in one sentence."""

import re
from pathlib import Path

from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from segsweep.errors import ResourceError

# Names and passwords in an address: `//NAME:PASSWORD@`, where a password may hold slashes, and PostgreSQL's `?password=`.
_SECRET = re.compile(r"//[^/\s]*@|//[^/\s:@]*:\S*@|(?<=password=)[^&\s'\"]+")
EXTRA = "pip install 'segsweep[cluster]'"


def public(text: str) -> str:
    """An address, or a text with addresses, without the names and passwords that they may hold."""
    return _SECRET.sub(lambda found: "//" if found[0].startswith("//") else "***", text)


def sqlite_file(address: str) -> Path | None:
    """The file of a SQLite address (`sqlite:///FILE?timeout=60`); None for any other address."""
    if not address.startswith("sqlite:///"):
        return None
    file = make_url(address).database
    return Path(file) if file else None


def reason(error: BaseException) -> str:
    """What a database, its driver, or what is in between said of a failure: one line without statements, values and passwords."""
    cause = error.__cause__ if isinstance(error.__cause__, SQLAlchemyError | ImportError) else error
    if isinstance(cause, ImportError):
        return f"its driver {cause.name} is not installed; {EXTRA} brings that of PostgreSQL"
    own = getattr(cause, "orig", None) or cause
    return public(str(own).strip().partition("\n")[0].rstrip("."))


def demand_database(address: str, *, variable: str) -> None:
    """Raise ResourceError when an address, given in `variable`, is that of a PostgreSQL that cannot be used now; ask it once.

    Those who use it later would say so at length, and some of them only after minutes.
    """
    if not address.startswith("postgresql"):
        return
    try:
        with create_engine(address, poolclass=NullPool).connect():
            pass
    except Exception as error:  # every driver raises its own
        raise ResourceError(
            f"database {public(address)!r} cannot be used ({reason(error)}); see that it runs and {variable} is right"
        ) from None
