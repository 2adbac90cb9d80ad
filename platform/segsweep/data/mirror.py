"""A folder on which several machines work: the folder itself where they share a disk, else this machine's copy of one in a bucket.

Where it is no bucket's, `folder` is the folder and nothing is copied. Of a bucket's, `fetch` brings what others changed and `send` takes
there what changed here: markers last, so that what is seen there is whole, and then what was deleted here is deleted there. A storage
that does not answer for a while is waited for. Hidden names and Ray's own records never travel.
"""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from segsweep.data import storage
from segsweep.data.lock import held
from segsweep.data.storage import Found, is_remote
from segsweep.errors import ResourceError
from segsweep.workspace import Workspace

# Written after all else of their folder, the later ones last of all: who sees them takes the rest for whole.
MARKERS = ("manifest.json", "result.json")
RAYS_OWN = ("ray", "tune")
# What was written so shortly before it was fetched may change again within the same second of the storage's clock.
SETTLED_NS = 10 * 10**9

# Says of a relative path whether it is meant.
Wanted = Callable[[str], bool]
# Bytes and time of change (ns) of a file here.
Stamp = tuple[int, int]


def everything(_name: str) -> bool:
    """All that a folder holds."""
    return True


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """What lies at `uri` (a path, or `s3://BUCKET/FOLDER`), to be read and written in `folder`."""

    uri: str
    folder: Path
    # What this process fetched or sent, as it was here then.
    _known: dict[str, Stamp] = field(default_factory=dict, init=False, repr=False, compare=False)

    def at(self, place: str | Path) -> "Mirror":
        """The part of it at an address, or at a path of the copy here. It has a memory of its own."""
        if not is_remote(self.uri):
            return Mirror(uri=str(place), folder=Path(place))
        if str(place).startswith("s3:"):
            name = storage.address(place).removeprefix(f"{self.uri}/")
        else:
            name = Path(place).relative_to(self.folder).as_posix()
        return Mirror(uri=f"{self.uri}/{name}", folder=self.folder / name)

    def fetch(self, wanted: Wanted = everything) -> None:
        """Make what is wanted here as it is there. What is as it was when it was fetched last stays."""
        if is_remote(self.uri):
            storage.patiently(partial(self._fetch, wanted))

    def send(self, wanted: Wanted = everything) -> None:
        """Take there what is wanted and changed here since this process fetched or sent it, and delete there what went since."""
        if is_remote(self.uri):
            storage.patiently(partial(self._send, wanted))

    def _fetch(self, wanted: Wanted) -> None:
        looked = time.time_ns()
        there = {name: found for name, found in storage.objects(self.uri).items() if _travels(name) and wanted(name)}
        here = self._stamps(wanted)
        for name in here.keys() - there.keys():
            (self.folder / name).unlink()
        changed = [name for name, found in there.items() if here.get(name) != (found.size, found.mtime_ns)]
        storage.download(self.uri, folder=self.folder, only=changed)
        for name in changed:
            with contextlib.suppress(FileNotFoundError):  # it went there at this very moment
                _date(self.folder / name, found=there[name], looked=looked)
        known = self._stamps(wanted)
        self._known.update(known)
        for name in [name for name in self._known if wanted(name) and name not in known]:
            del self._known[name]

    def _send(self, wanted: Wanted) -> None:
        here = self._stamps(wanted)
        changed = {name: stamp for name, stamp in here.items() if self._known.get(name) != stamp}
        for marker in ("", *MARKERS):
            group = [name for name in changed if _marker(name) == marker]
            storage.send(self.folder, uri=self.uri, names=group)
            self._known.update({name: changed[name] for name in group})
        gone = [name for name in self._known if wanted(name) and name not in here]
        for place in sorted({self._lost(name) for name in gone}):
            if place in gone:
                storage.remove(f"{self.uri}/{place}")
            else:
                storage.delete(f"{self.uri}/{place}", first=MARKERS[0])
        for name in gone:
            del self._known[name]

    def _stamps(self, wanted: Wanted) -> Mapping[str, Stamp]:
        """Of the files here that are wanted, by relative path."""
        found = {}
        for folder, folders, files in os.walk(self.folder):
            folders[:] = filter(_travels, folders)
            for path in (Path(folder, name) for name in files):
                name = path.relative_to(self.folder).as_posix()
                if _travels(name) and wanted(name):
                    status = path.stat()
                    found[name] = (status.st_size, status.st_mtime_ns)
        return found

    def _lost(self, name: str) -> str:
        """What is to be deleted for a file that is gone: the outermost of its folders that is gone with it, or itself."""
        folders = list(PurePosixPath(name).parents)[-2::-1]
        gone = (folder for folder in folders if not (self.folder / folder).exists())
        return next((folder.as_posix() for folder in gone), name)


# For what nobody shares: its parts are folders of this machine.
HERE = Mirror(uri="", folder=Path())


def shared(workspace: Workspace) -> Mirror:
    """A workspace, as those see it who work on it."""
    return Mirror(uri=workspace.uri or str(workspace.root), folder=workspace.root)


@contextmanager
def working(place: str | Path) -> Iterator[Mirror]:
    """A folder to work in: the folder itself or, of one in a bucket, a copy of this process's own, which is empty at first.

    The copy lies below the system's folder for temporary files and is deleted afterwards; those of killed processes go when the next
    is made.
    """
    if not is_remote(storage.address(place)):
        yield Mirror(uri=str(place), folder=Path(place))
        return
    uri = storage.address(place)
    with _copy() as copy:
        folder = copy / PurePosixPath(uri).name
        folder.mkdir()
        yield Mirror(uri=uri, folder=folder)


@contextmanager
def _copy() -> Iterator[Path]:
    """An empty folder that is deleted afterwards."""
    copies = Path(tempfile.gettempdir(), f"segsweep-work-{os.getuid()}")
    copies.mkdir(mode=0o700, exist_ok=True)
    if copies.is_symlink() or copies.stat().st_uid != os.getuid():
        raise ResourceError(f"{copies} belongs to somebody else; set TMPDIR to a folder of your own")
    with ExitStack() as stack:
        with held(copies, otherwise=None):
            for left in [path for path in copies.iterdir() if path.is_dir()]:
                _delete_dead(left)
            folder = Path(tempfile.mkdtemp(dir=copies))
            stack.enter_context(held(folder, otherwise=None))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


def _delete_dead(folder: Path) -> None:
    """Delete a copy unless its process lives."""
    alive = ResourceError(f"{folder} is in use")
    with contextlib.suppress(ResourceError, FileNotFoundError), held(folder, otherwise=alive):
        shutil.rmtree(folder, ignore_errors=True)


def _travels(name: str) -> bool:
    """Whether a relative path is one of a folder's own, and neither hidden nor Ray's."""
    path = PurePosixPath(name)
    return not path.is_absolute() and not any(part.startswith(".") or part in RAYS_OWN for part in path.parts)


def _marker(name: str) -> str:
    """The marker that a file is, or nothing."""
    return next((marker for marker in MARKERS if PurePosixPath(name).name == marker), "")


def _date(path: Path, *, found: Found, looked: int) -> None:
    """Give a fetched file the time of its original, by which the next fetch knows it; none where that may be another's too."""
    settled = looked - found.mtime_ns > SETTLED_NS
    os.utime(path, ns=(looked, found.mtime_ns if settled else 0))
