"""MLflow for a group: behind names and passwords, its records in a database, its files in a folder or bucket that it alone opens."""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path

from sqlalchemy import URL, create_engine, inspect, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from segsweep.errors import ResourceError
from segsweep.models.browsing import Servers, demand_free, running
from segsweep.models.databases import EXTRA, demand_database, public, reason
from segsweep.workspace import Workspace

DATABASE, ARTIFACTS = "MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION"
ADMIN = "admin"
# Behind an ssh tunnel a browser names this machine by these.
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

# Whoever has a name may read all, and add runs and models to every experiment: one holds all sweeps on a dataset, whoever ran them.
# Only the maker of a thing and the admin delete it. A changed password counts after these seconds; to check one takes long.
AUTHENTICATION = """\
[mlflow]
default_permission = EDIT
database_uri = {database}
admin_username = {admin}
auth_cache_ttl_seconds = 60
"""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """A server that was started. `password` is the file with the admin's, None when the database knew the admin before."""

    servers: Servers
    address: str
    database: str
    artifacts: str
    password: Path | None


@contextmanager
def serve_group(
    workspace: Workspace, *, port: int, host: str, allowed_hosts: Sequence[str], artifacts: str | None
) -> Iterator[Serving]:
    """MLflow on `host` and `port`, for the time of a `with` block.

    The database is what MLFLOW_BACKEND_STORE_URI names, else a file; `artifacts`, else MLFLOW_ARTIFACTS_DESTINATION, is a folder or
    s3:// address. What is not named lies in `server/` of the workspace. Raises ResourceError when it cannot serve.
    """
    folder = workspace.root / "server"
    names = _names(host, allowed=allowed_hosts)
    demand_free(host, port=port)
    database = os.environ.get(DATABASE) or f"sqlite:///{folder / 'mlflow.db'}"
    place = artifacts or os.environ.get(ARTIFACTS) or str(folder / "artifacts")
    _demand_usable(database, artifacts=place)
    folder.mkdir(parents=True, exist_ok=True)
    password = None if _knows_admin(database) else _password_file(folder / "admin.password")
    environment = {**_login(database, file=folder / "authentication.ini"), ARTIFACTS: place}
    environment["MLFLOW_SERVER_ALLOWED_HOSTS"] = ",".join(names)
    if password:
        environment["MLFLOW_AUTH_ADMIN_PASSWORD"] = password.read_text().strip()
    line = ["-m", "mlflow", "server", "--app-name", "basic-auth", "--host", host, "--port", str(port)]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    with running({"MLflow": line}, environment=environment) as processes:
        yield Serving(
            servers=Servers(processes=processes, addresses={"MLflow": address}),
            address=address,
            database=public(database),
            artifacts=place,
            password=password,
        )


def _names(host: str, *, allowed: Sequence[str]) -> list[str]:
    """The Host headers that are answered, with any port: a page on the internet cannot reach the server by a name of its own."""
    try:
        everywhere = ip_address(host).is_unspecified
    except ValueError:  # a name
        everywhere = False
    if everywhere and not allowed:
        raise ResourceError(
            f"--host {host} listens on all addresses of this machine, and none is named by which it may be called; "
            "name them with --allowed-hosts mlflow.example,10.0.0.5"
        )
    own = [] if everywhere else [f"[{host}]" if ":" in host else host]
    every = dict.fromkeys([*LOOPBACK, *own, *allowed])
    # MLflow compares patterns; a bracket begins a set of characters in one.
    return [form for name in every for form in (name, f"{name.replace('[', '[[]')}:*")]


def _demand_usable(database: str, *, artifacts: str) -> None:
    if not database.startswith(("postgresql", "sqlite:")):
        raise ResourceError(f"{DATABASE}={public(database)!r}: expected postgresql://… or sqlite:///FILE")
    if "@" in artifacts:
        raise ResourceError(
            f"{public(artifacts)!r} is no place for artifacts; expected a folder or s3://BUCKET/FOLDER, with the bucket's "
            "credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    lacking = [name for name in ("flask_wtf", *(["boto3"] if "://" in artifacts else [])) if find_spec(name) is None]
    if lacking:
        raise ResourceError(f"MLflow's server needs {' and '.join(lacking)}, not installed here; {EXTRA} brings it")
    demand_database(database, variable=DATABASE)


def _knows_admin(database: str) -> bool:
    """Whether MLflow was here before: it sets the admin's password only once."""
    engine = create_engine(database)
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table("users"):
                return False
            return bool(connection.scalar(text("SELECT count(*) FROM users WHERE is_admin")))
    except SQLAlchemyError as error:
        raise ResourceError(f"{DATABASE}={public(database)!r} cannot be used ({reason(error)})") from None
    finally:
        engine.dispose()


def _password_file(file: Path) -> Path:
    """The file with the admin's password, for its owner alone; a new password when there is none."""
    if not file.is_file():
        _write_private(file, words=f"{secrets.token_urlsafe(24)}\n")
    if file.stat().st_mode & 0o077:
        raise ResourceError(f"{file}: other users of this machine may read this password; chmod 600 it")
    return file


def _login(database: str, *, file: Path) -> dict[str, str]:
    """Where MLflow finds its records, and in the same database those of its users.

    The latter it reads from a file only: a PostgreSQL's password goes into neither but where its driver looks for it.
    """
    url = make_url(database)
    query = {name: value for name, value in url.query.items() if name != "password"}
    password = url.password or url.query.get("password")
    found = {"PGPASSWORD": str(password)} if password else {}
    address = URL.create(url.drivername, url.username, None, url.host, url.port, url.database, query).render_as_string(
        hide_password=False
    )
    _write_private(file, words=AUTHENTICATION.format(database=address.replace("%", "%%"), admin=ADMIN))
    found |= {DATABASE: address, "MLFLOW_AUTH_CONFIG_PATH": str(file)}
    # Signs what its pages send back; all its processes need the same one.
    return {**found, "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(32)}


def _write_private(file: Path, *, words: str) -> None:
    """There whole or not at all, for its owner alone."""
    partial = file.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(words)
    partial.replace(file)
