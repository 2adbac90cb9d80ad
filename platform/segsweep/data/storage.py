"""Where stores and results lie: in a folder, or in a bucket of an object storage (`s3://BUCKET/FOLDER`), which only this module knows.

Objects cannot be renamed, so a remote folder is there once its commit marker is: the file that is written last and deleted first.
The environment says how to get in: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, or the machine's own role;
AWS_ENDPOINT_URL names a storage that is not Amazon's.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar

from segsweep.errors import InputError, StorageAwayError, StoreError
from segsweep.terminal import complain

if TYPE_CHECKING:
    from pyarrow.fs import S3FileSystem

Result = TypeVar("Result")

_ADDRESS = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/]+)*")
# A request that fails for reasons that may pass (5xx, a lost connection) is made again, after pauses that grow.
ATTEMPTS = 4
CONNECT_SECONDS, SILENT_SECONDS = 5.0, 20.0
# Seconds to wait before each further attempt: a network may be away for a minute, and a training should not end for it.
PAUSES = (1.0, 5.0, 15.0, 40.0)
# Files of one folder that travel at the same time.
CONCURRENT = 8
# A download asks for so many bytes at a time, and waits for the storage's answer each time.
_BLOCK_BYTES = 2**23

_AWS_ERROR = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))?")
_DENIED = (
    "the object storage denies access; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to credentials that may do this"
)
_EXPIRED = (
    "the object storage refuses the request (status 400), as it does with credentials that have run out; renew AWS_SESSION_TOKEN and the "
    "keys that belong to it, or correct AWS_REGION"
)
_NO_BUCKET = "the bucket does not exist; correct its name, or make it first"
_REASONS = {
    "ACCESS_DENIED": _DENIED,
    "INVALID_ACCESS_KEY_ID": _DENIED,
    "INVALID_CLIENT_TOKEN_ID": _DENIED,
    "SIGNATURE_DOES_NOT_MATCH": _DENIED,
    "MISSING_AUTHENTICATION_TOKEN": _DENIED,
    "NO_SUCH_BUCKET": _NO_BUCKET,
}
# What may be otherwise a moment later, like every status from 500 on.
_PASSING = {
    "NETWORK_CONNECTION",
    "SLOW_DOWN",
    "THROTTLING",
    "SERVICE_UNAVAILABLE",
    "INTERNAL_FAILURE",
    "REQUEST_TIMEOUT",
}


@dataclass(frozen=True, kw_only=True)
class Found:
    """An object: its bytes, and when it was written, in nanoseconds since 1970 (a storage may know whole seconds only)."""

    size: int
    mtime_ns: int


def address(given: str | Path) -> str:
    """The one spelling of where a store lies: an absolute folder, or `s3://BUCKET/FOLDER`. Raises StoreError for other schemes."""
    text = str(given)
    if text.startswith("s3:/"):
        # A Path that was made of an address has lost one slash.
        text = f"s3://{text.removeprefix('s3:').strip('/')}"
        if not _ADDRESS.fullmatch(text) or {".", ".."} & set(text.split("/")):
            shown = text.rpartition("@")[2]  # what stands before an @ may be a password
            raise StoreError(f"{shown!r} is no address of a store; expected s3://BUCKET/FOLDER")
        return text
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise StoreError(
            f"{text.partition(':')[0]}:// is no place for a store; expected a folder or s3://BUCKET/FOLDER"
        )
    try:
        return str(Path(text).expanduser().resolve())
    except RuntimeError:
        raise StoreError(f"{text}: there is no such user, or its links lead in a circle; expected a folder") from None


def is_remote(uri: str | Path) -> bool:
    """Whether an address is that of an object storage."""
    return str(uri).startswith("s3://")


def patiently(work: Callable[[], Result]) -> Result:
    """What `work` returns, tried again after pauses while the storage is away; stderr says so once a process.

    Raises StoreError when it stays away, or refuses.
    """
    for pause in PAUSES:
        try:
            return work()
        except StorageAwayError as error:
            if not _said:
                _said.append(str(error))
                complain(f"{error}; work goes on once it answers")
            time.sleep(pause)
    return work()


_said: list[str] = []


def exists(uri: str) -> bool:
    """Whether there is a file. Raises StoreError when nobody can tell: no such bucket, no access, no connection."""
    if not is_remote(uri):
        return Path(uri).is_file()
    with _asking(uri):
        if _filesystem().get_file_info(_key(uri)).is_file:
            return True
        bucket = _filesystem().get_file_info(_key(uri).partition("/")[0])
    if bucket.type.name == "NotFound":
        raise StoreError(f"{uri}: {_NO_BUCKET}")
    return False


def read_bytes(uri: str) -> bytes:
    """All of a file. Raises FileNotFoundError when it is not there, StoreError when the storage does not answer."""
    if not is_remote(uri):
        return Path(uri).read_bytes()
    with _asking(uri), _filesystem().open_input_file(_key(uri)) as stream:
        return stream.read()


def write_bytes(uri: str | Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    if is_remote(uri):
        with _asking(str(uri)), _filesystem().open_output_stream(_key(str(uri))) as stream:
            stream.write(content)
        return
    path = Path(uri)
    # Two processes that write the same file must not write into one another.
    partial_file = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial_file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    partial_file.replace(path)
    flush(path.parent)


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A hidden file of the same suffix to write, which takes the place of `path` once the block ends: it is there complete or not at all.

    An OSError of the block becomes an InputError that names the file and the reason.
    """
    unfinished = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        raise InputError(
            f"{path.name} cannot be written ({error.strerror or error}); expected a writable folder with space left"
        ) from None
    finally:
        if unfinished.is_file():
            unfinished.unlink()


def sha256(*uris: str | Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal; of several files as if they were one."""
    digest = hashlib.sha256()
    for uri in uris:
        if is_remote(uri):
            digest.update(read_bytes(str(uri)))
            continue
        with Path(uri).open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Wait until a local file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def names(uri: str) -> list[str]:
    """What lies directly in a folder, sorted; nothing for one that is not there."""
    if not is_remote(uri):
        return sorted(path.name for path in Path(uri).iterdir()) if Path(uri).is_dir() else []
    return sorted(PurePosixPath(key).name for key in _listed(uri, recursive=False))


def sizes(uri: str) -> dict[str, int]:
    """Relative path -> bytes, for every file at any depth below a remote folder."""
    return {name: found.size for name, found in objects(uri).items()}


def objects(uri: str) -> dict[str, Found]:
    """Relative path -> what is known of it, for every file at any depth below a remote folder."""
    root = _key(uri)
    return {key[len(root) + 1 :]: found for key, found in _listed(uri, recursive=True).items() if found is not None}


@contextmanager
def mirrored(uri: str | Path, *, only: Collection[str] | None = None) -> Iterator[Path]:
    """A folder to read from: the folder itself or, of a remote one, a passing copy of it or of the files `only`."""
    if not is_remote(uri):
        yield Path(uri)
        return
    with _scratch(str(uri)) as folder:
        download(str(uri), folder=folder, only=only)
        yield folder


@contextmanager
def replaced(uri: str | Path, *, last: str, unless: Callable[[], bool] = lambda: False) -> Iterator[Path]:
    """A folder to write what shall lie at an address: the folder itself or, for a remote one, a passing one that is then uploaded.

    `unless` is asked before the upload: whether another node did it meanwhile.
    """
    if not is_remote(uri):
        yield Path(uri)
        return
    with _scratch(str(uri)) as folder:
        yield folder
        if not unless():
            upload(folder, uri=str(uri), last=last)


def download(uri: str, *, folder: Path, only: Collection[str] | None = None) -> None:
    """Copy a remote folder, or the files `only` of it, into a local one.

    Files that are not there are left out, and so are names that lead out of the folder: the manifest's check names them.
    """
    wanted = [name for name in (sizes(uri) if only is None else only) if _is_inside(name)]
    _each(partial(_download, uri=uri, folder=folder), wanted)


def upload(folder: Path, *, uri: str, last: str) -> None:
    """Put a local folder in the place of a remote one. The file `last` goes first of the old one and comes last of the new one."""
    delete(uri, first=last)
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    send = partial(_upload, uri=uri, folder=folder)
    _each(send, [name for name in found if name != last])
    send(last)


def send(folder: Path, *, uri: str, names: Sequence[str]) -> None:
    """Copy these files of a local folder to the same names below an address, several at a time and in no order."""
    _each(partial(_upload, uri=uri, folder=folder), names)


def remove(uri: str) -> None:
    """Delete a remote file; no matter whether it is there."""
    with contextlib.suppress(FileNotFoundError), _asking(uri):
        _filesystem().delete_file(_key(uri))


def delete(uri: str, *, first: str) -> None:
    """Delete a remote folder with all that is in it, the file `first` before the others; no matter whether it is there."""
    with _asking(uri):
        with contextlib.suppress(FileNotFoundError):
            _filesystem().delete_file(f"{_key(uri)}/{first}")
        with contextlib.suppress(FileNotFoundError):
            _filesystem().delete_dir(_key(uri))


@contextmanager
def _scratch(uri: str) -> Iterator[Path]:
    """A path of the same name below a folder that is deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="segsweep-") as parent:
        yield Path(parent) / PurePosixPath(uri).name


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _each(work: partial[None], items: Collection[str]) -> None:
    with ThreadPoolExecutor(CONCURRENT) as pool:
        list(pool.map(work, items))


def _download(name: str, *, uri: str, folder: Path) -> None:
    target = folder / name
    with (
        contextlib.suppress(FileNotFoundError),
        _asking(f"{uri}/{name}"),
        _filesystem().open_input_file(f"{_key(uri)}/{name}") as source,
    ):
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as sink:
            shutil.copyfileobj(source, sink, _BLOCK_BYTES)


def _upload(name: str, *, uri: str, folder: Path) -> None:
    with (
        (folder / name).open("rb") as source,
        _asking(f"{uri}/{name}"),
        _filesystem().open_output_stream(f"{_key(uri)}/{name}") as sink,
    ):
        shutil.copyfileobj(source, sink, _BLOCK_BYTES)


def _listed(uri: str, *, recursive: bool) -> dict[str, Found | None]:
    """Key -> what is known of what lies below an address; None for folders."""
    from pyarrow.fs import FileSelector  # noqa: PLC0415  as below

    with _asking(uri):
        selector = FileSelector(_key(uri), recursive=recursive, allow_not_found=True)
        return {
            one.path: Found(size=one.size, mtime_ns=one.mtime_ns) if one.is_file else None
            for one in _filesystem().get_file_info(selector)
        }


def _key(uri: str) -> str:
    return uri.removeprefix("s3://")


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _filesystem() -> "S3FileSystem":
    return _connected(_endpoint())


@cache
def _connected(endpoint: str | None) -> "S3FileSystem":
    # Takes 0.2 s and starts threads: stores in folders do without.
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem  # noqa: PLC0415

    return S3FileSystem(
        endpoint_override=endpoint,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=SILENT_SECONDS,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        # Small files take one request, and no other.
        allow_delayed_open=True,
    )


@contextmanager
def _asking(uri: str) -> Iterator[None]:
    """Turns what the storage answers into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # no such object, or a fault of this machine's disk
            raise
        match = _AWS_ERROR.search(str(error))
        word, status = (match[1], match[2]) if match else ("unknown", None)
        passing = word in _PASSING or (status or "").startswith("5")
        raise (StorageAwayError if passing else StoreError)(f"{uri}: {_reason(word, status=status)}") from None


def _reason(word: str, *, status: str | None) -> str:
    if word == "NETWORK_CONNECTION":
        where = _endpoint() or "Amazon S3"
        return f"{where} cannot be reached; check the network, and AWS_ENDPOINT_URL where the storage is not Amazon's"
    if word == "UNKNOWN" and status == "400":
        # All that is known: what asks for a file's size first (HEAD) gets no text with its status.
        return _EXPIRED
    if word in _REASONS or status == "403":
        return _REASONS.get(word, _DENIED)
    failed = f"{word}, status {status}" if status else word
    return f"the object storage failed ({failed}); check AWS_REGION and AWS_ENDPOINT_URL, or try again later"
