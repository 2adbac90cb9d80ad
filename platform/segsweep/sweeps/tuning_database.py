"""The database of all studies: opened by several drivers at once, waited for when it starts again, its failures in one sentence."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from segsweep.data.mirror import shared
from segsweep.errors import RecipeError, ResourceError, SegsweepError
from segsweep.models.databases import public, reason
from segsweep.workspace import Workspace

# Tries to make the tables of a new database while others do.
OPENING_TRIES = 4
# Seconds between tries to reach a study database that was there before: five minutes in all.
RECONNECT_WAITS = (1.0, 2.0, 4.0, 8.0, *[15.0] * 19)
# Of a study: the address of the workspace where its trials lie.
WORKSPACE = "segsweep.workspace"


def open_database(storage: str) -> Any:
    """Where studies are kept, as Optuna takes it. Raises ResourceError when it cannot be used.

    A server that is started again in between is waited for.
    """
    try:
        opened = _open(storage)
    except Exception as error:  # every database's driver raises its own
        raise ResourceError(
            f"study database {public(storage)!r} cannot be used ({reason(error)}); "
            "expected sqlite:///FILE or the address of a database that runs in SEGSWEEP_STUDIES"
        ) from error
    if opened.engine.dialect.name != "sqlite":
        event.listen(opened.engine, "do_connect", _connect_patiently)
    return optuna.storages.get_storage(opened)


@contextlib.contextmanager
def studied() -> Iterator[None]:
    """A study database's failures as ResourceError: around (or as decorator of) whatever asks a study, Ray Tune's loop too."""
    try:
        yield
    except SegsweepError:
        raise
    except Exception as error:
        found = _of_database(error)
        if found is None:
            raise
        raise ResourceError(
            f"the study database could not do what was asked of it ({reason(found)}); all that was written is kept: see that it runs, "
            "has room and SEGSWEEP_STUDIES is right, then give the same command again"
        ) from error


@studied()
def demand_own(workspace: Workspace, *, name: str) -> None:
    """Raise RecipeError when the database's sweep of that name is another workspace's. A workspace with its own database may be moved."""
    storage, own = workspace.studies_uri, shared(workspace).uri
    if storage == workspace.own_studies_uri:
        return
    database = open_database(storage)
    if name not in optuna.get_all_study_names(database):
        return
    found = optuna.load_study(study_name=name, storage=database).user_attrs.get(WORKSPACE, own)
    if found != own:
        raise RecipeError(
            f"sweep {name!r} in the study database {public(storage)!r} is that of another workspace, {found} (this one is {own}); "
            "choose another name=…, or set SEGSWEEP_WORKSPACE to that one"
        )


def _of_database(error: BaseException | None) -> BaseException | None:
    """The database's own failure behind an error: Ray Tune raises another one, with its traceback as text."""
    while error is not None and not isinstance(error, StorageInternalError | SQLAlchemyError):
        error = error.__cause__ or error.__context__
    return error


def _open(storage: str) -> optuna.storages.RDBStorage:
    """Several drivers may make the tables of a new database at once: all but one find them there, and look again."""
    # A connection that a server has closed is only noticed in use; this asks first, and opens another.
    settings = {"pool_pre_ping": True}
    for _ in range(OPENING_TRIES - 1):
        with contextlib.suppress(IntegrityError, ProgrammingError):
            return optuna.storages.RDBStorage(storage, engine_kwargs=settings)
    return optuna.storages.RDBStorage(storage, engine_kwargs=settings)


def _connect_patiently(dialect: Any, _record: Any, arguments: Any, options: Any) -> Any:
    """Trials go on training while their driver waits here."""
    for wait in RECONNECT_WAITS:
        with contextlib.suppress(dialect.loaded_dbapi.OperationalError):
            return dialect.connect(*arguments, **options)
        time.sleep(wait)
    return dialect.connect(*arguments, **options)
