"""One driver's entries for MLflow on the disk, and how many of them were sent: killed at any moment, it loses none.

line 1   where the first entry begins that was not sent (bytes from the start, overwritten in place)
line 2   JSON: the experiment and the server that the entries are for
others   JSON, one entry each, in their order; a last line without its end was torn by a dying driver and counts for nothing
"""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from segsweep.data.storage import flush
from segsweep.errors import ModelError

SUFFIX, REFUSED_SUFFIX = ".jsonl", ".refused"
# A file of which all was sent begins anew when it is longer (bytes): a sweep of thousands of trials tells gigabytes, pictures among them.
LONGEST_SENT = 2**24
DIGITS = 20


class OutboxFile:
    """Entries in their order, from the first that was not sent. The file is locked until `close`, or until its process ends."""

    def __init__(self, path: Path, *, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor
        content = path.read_bytes()
        self._end = content.rfind(b"\n") + 1
        try:
            position, header = content[: self._end].split(b"\n", 2)[:2]
            self.header: dict[str, str] = json.loads(header)
            self._begin, self._sent = len(position) + len(header) + 2, int(position)
        except ValueError:
            raise ModelError(
                f"{path}: no file of entries for MLflow (its first two lines are damaged); move it away"
            ) from None
        self._reader = path.open("rb")
        self.waiting = content.count(b"\n", self._sent, self._end)

    @classmethod
    def create(cls, path: Path, *, header: Mapping[str, str]) -> Self:
        """A new file without entries, there whole or not at all."""
        partial = path.with_suffix(".partial")
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.pwrite(descriptor, _head(header), 0)
        os.fsync(descriptor)
        partial.rename(path)
        flush(path.parent)
        return cls(path, descriptor=descriptor)

    @classmethod
    def left(cls, path: Path) -> Self | None:
        """What a driver left that is no more; None while it lives, or when another has just sent the file or it may not be written."""
        try:
            descriptor = os.open(path, os.O_RDWR)
        except (FileNotFoundError, PermissionError):
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:
                return cls(path, descriptor=os.dup(descriptor))
            return None
        except BlockingIOError:
            return None
        finally:
            os.close(descriptor)

    @property
    def refused(self) -> Path:
        """Where entries go that the server will never take: the same form, so that renamed to `.jsonl` it is sent again."""
        return self.path.with_suffix(REFUSED_SUFFIX)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add an entry; it is on the disk when this returns. Raises OSError when it cannot be written."""
        line = _line(entry)
        if os.pwrite(self._descriptor, line, self._end) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        os.fdatasync(self._descriptor)
        self._end += len(line)
        self.waiting += 1

    def first(self) -> bytes:
        """The line of the first entry that was not sent."""
        self._reader.seek(self._sent)
        return self._reader.readline()

    def drop_first(self) -> None:
        """The first entry was sent, and is never sent again. A power failure may forget this, the death of the process does not."""
        self._sent += len(self.first())
        self.waiting -= 1
        if not self.waiting and self._end > LONGEST_SENT:
            self._begin_anew()
        os.pwrite(self._descriptor, _position(self._sent), 0)

    def _begin_anew(self) -> None:
        """Forget what was sent. Until the new position is written the old one lies behind the end, where nothing waits."""
        os.ftruncate(self._descriptor, self._begin)
        self._end = self._sent = self._begin
        self._reader.close()  # it may hold bytes that are no more
        self._reader = self.path.open("rb")

    def set_first_aside(self, *, reason: str) -> None:
        """Copy the first entry, with the reason, to the entries that were refused."""
        line = self.first()
        with contextlib.suppress(ValueError, TypeError):  # what is no entry at all is kept as it is
            line = _line({**json.loads(line), "refused": reason})
        with self.refused.open("ab") as stream:
            if stream.tell() == 0:
                stream.write(_head(self.header))
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())

    def close(self) -> None:
        """Delete the file when nothing of it waits; else it stays for the next driver."""
        if not self.waiting:
            self.path.unlink(missing_ok=True)
        self._reader.close()
        os.close(self._descriptor)


def _head(header: Mapping[str, str]) -> bytes:
    line = _line(header)
    return _position(DIGITS + 1 + len(line)) + line


def _position(offset: int) -> bytes:
    return b"%*d\n" % (DIGITS, offset)


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, default=str).encode() + b"\n"
