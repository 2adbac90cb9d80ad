"""What the folders of public datasets have in common: listed files, names in a JSON file, channels by number, pairs by name.

Paths and names that come from a file are not trusted: nothing outside the dataset's folder is ever looked at.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

from segsweep.data.case import lies_below
from segsweep.data.readers import MAX_LABEL, is_scan, stem
from segsweep.errors import InputError

MAX_JSON_BYTES = 10 * 2**20
MAX_JSON_DEPTH = 32
MAX_NAME = 1024
T = TypeVar("T")

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a text"}
_NUMBER = re.compile("0|[1-9][0-9]{0,4}")
# How names say left, and what says right in its place: Eye_L, EyeL, L_Eye, LK, left_eye, Eye_Lt.
_LEFT = (
    (re.compile("left"), "right"),
    (re.compile("Left"), "Right"),
    (re.compile("LEFT"), "RIGHT"),
    (re.compile("(?<![A-Z])L(?![a-z])"), "R"),
    (re.compile("(?<![A-Za-z])l(?![A-Za-z])"), "r"),
    (re.compile("(?<![A-Za-z])Lt(?![A-Za-z])"), "Rt"),
    (re.compile("(?<![A-Za-z])lt(?![A-Za-z])"), "rt"),
)
# Chambers of the heart: a mirrored left ventricle is no right one.
_CHAMBER = re.compile(
    "(?i:heart|ventricle|ventricular|atrium|atrial|atria|appendage)|(?<![A-Za-z])(LV|RV|LA|RA|LAA|RAA)(?![A-Za-z])"
)


def inside(root: Path, relative: str) -> Path:
    """The file that a name from a manifest means. The name is untrusted: whatever could lead out of `root` is an InputError."""
    # Look-alikes of dots and slashes are judged as what they look like.
    plain = unicodedata.normalize("NFKC", relative) if isinstance(relative, str) else ""
    reason, do = _hostile(plain), "correct the name"
    path = root / PurePosixPath(relative) if not reason else root
    if not reason and not lies_below(path, root=root):
        reason, do = "leads out of the dataset's folder by a link", "copy the data itself there"
    if reason:
        shown = repr(relative)
        shown = shown if len(shown) <= 120 else f"{shown[:60]} … {len(shown)} characters"
        raise InputError(f"the name {shown} {reason}; expected a file inside {root.name}/; {do}")
    return path


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    """The JSON object in a file of at most 10 MB, nested at most 32 deep. `what` says what the file should be."""
    if not path.is_file():
        raise InputError(f"no {path.name} in {path.parent}; expected {what}; choose the folder that holds it")
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_distinct)
        if not isinstance(content, dict) or _deeper_than(content, levels=MAX_JSON_DEPTH):
            raise ValueError("no JSON object, or nested too deep")
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path.name} cannot be used ({error}); expected {what}; copy it again") from None
    return content


def entry(content: dict[str, Any], *, key: str, kind: type[T], file: str) -> T:
    """One value of a JSON object, of the type it must have. Raises InputError that names the file and the key."""
    value = content.get(key)
    if not isinstance(value, kind):
        found = f"{key!r} is {str(value)[:60]!r}" if key in content else f"there is no {key!r}"
        raise InputError(f"{file}: {found}; expected {_KINDS[kind]}; correct the file")
    return value


def numbered(content: dict[str, Any], *, key: str, file: str) -> dict[int, str]:
    """An object such as `{"0": "CT", "1": "PET"}` in the order of its numbers."""
    found = entry(content, key=key, kind=dict, file=file)
    for number, name in found.items():
        if not _NUMBER.fullmatch(number) or not isinstance(name, str):
            raise InputError(
                f"{file}: {key!r} holds {number[:60]!r}: {str(name)[:60]!r}; expected a number and a name; correct the file"
            )
    demand_names(found.values(), file=file)
    return {int(number): found[number] for number in sorted(found, key=int)}


def structures_by_value(stated: dict[str, Any], *, file: str) -> dict[int, tuple[str, ...]]:
    """From the value, or the list of values, of each structure to the structures of each value: lists may overlap."""
    demand_names(stated, file=file)
    found: dict[int, list[str]] = {}
    for name, given in stated.items():
        numbers = given if isinstance(given, list) else [given]
        if not numbers or not all(type(number) is int and 1 <= number <= MAX_LABEL for number in numbers):
            raise InputError(
                f"{file}: {name!r} has the value {str(given)[:60]!r}; expected a whole number from 1 to {MAX_LABEL}, "
                "or a list of them; correct the file"
            )
        for number in set(numbers):
            found.setdefault(number, []).append(name)
    return {number: tuple(found[number]) for number in sorted(found)}


def demand_names(names: Iterable[Any], *, file: str) -> None:
    """Raises InputError for names of structures or channels that are no short, printable text."""
    for name in names:
        if not isinstance(name, str) or not name.strip() or len(name) > 128 or not name.isprintable():
            raise InputError(
                f"{file}: {str(name)[:60]!r} cannot be a name; expected 1 to 128 printable characters; correct the file"
            )


def scans(root: Path, pattern: str) -> list[Path]:
    """The files of a readable format that match a glob below `root`, sorted; hidden ones (`._x`, `.x/`) are passed over.

    Links that are broken or lead out of `root` are listed: reading them fails and says why, and no case is lost in silence. Where a
    pattern searches all folders below, raises InputError for a linked one that leads out: it is not searched.
    """
    if "**" in pattern:
        folders = (path for path in root.rglob("*") if path.is_dir() and not _hidden(path, root=root))
        _demand_no_links_out(folders, root=root)
    found = (path for path in root.glob(pattern) if is_scan(path) and not _hidden(path, root=root))
    return sorted(path for path in found if not path.is_dir())


def files_below(root: Path) -> list[Path]:
    """Every file in a folder and below, sorted; hidden ones (`._x`, `.git/x`) are passed over.

    Raises InputError for a link that leads out of the folder or to nothing: linked folders are not searched, and what they hold would
    be lost in silence.
    """
    found = [path for path in sorted(root.rglob("*")) if not _hidden(path, root=root)]
    _demand_no_links_out(found, root=root)
    return [path for path in found if path.is_file()]


def _demand_no_links_out(paths: Iterable[Path], *, root: Path) -> None:
    for path in paths:
        if path.is_symlink() and not (path.exists() and lies_below(path, root=root)):
            where = f"out of {root.name}" if path.exists() else "to nothing"
            raise InputError(f"{path.name} is a link {where}; expected the data itself in {root.name}; copy it there")


def demand_cases(found: Sequence[Any], *, raw: Path, layout: str) -> None:
    """Raises InputError when nothing was found. `layout` says what the folder should hold."""
    if not found:
        raise InputError(f"{raw} holds no cases; expected {layout}; choose the folder that holds them")


def one_each(paths: Iterable[Path]) -> dict[str, Path]:
    """Files by their name without suffix, which must be unique. Raises InputError that names two files of one name."""
    found: dict[str, Path] = {}
    for path in paths:
        other = found.setdefault(stem(path), path)
        if other != path:
            raise InputError(
                f"{stem(path)} is there twice, as {other.parent.name}/{other.name} and {path.parent.name}/{path.name}; "
                "expected it once; take one away"
            )
    return found


def channel_files(paths: Iterable[Path], *, num_channels: int) -> dict[str, tuple[Path, ...]]:
    """Images named CASE_0000, CASE_0001 … by case, in the order of channels.

    A missing channel is listed by the name that it should have: reading it says that it is not there. Raises InputError for a
    name without a number, and for numbers from `num_channels` on.
    """
    found: dict[str, dict[int, Path]] = {}
    for path in paths:
        name = _CHANNEL.fullmatch(stem(path))
        if name is None:
            raise InputError(
                f"{path.parent.name}/{path.name} has no channel number; expected CASE_0000 and so on; rename the file"
            )
        other = found.setdefault(name["case"], {}).setdefault(int(name["channel"]), path)
        if other != path:
            raise InputError(f"{other.name} and {path.name} are the same channel; expected one; take one away")
    for case_id, channels in found.items():
        if max(channels) >= num_channels:
            raise InputError(
                f"{case_id}: has channels {sorted(channels)}; expected 0 to {num_channels - 1}; take away the extra one"
            )
    return {case_id: _all_channels(paths, num_channels=num_channels) for case_id, paths in found.items()}


def _all_channels(paths: Mapping[int, Path], *, num_channels: int) -> tuple[Path, ...]:
    """The images of a case, whether they are there or not; names follow the first that is there."""
    number, first = next(iter(paths.items()))
    other = first.name.rpartition(f"_{number:04d}")
    return tuple(
        paths.get(index, first.with_name(f"{other[0]}_{index:04d}{other[2]}")) for index in range(num_channels)
    )


def pairs_of(structures: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(left, right) pairs among the names, chambers of the heart aside."""
    pairs: dict[str, str] = {}
    for name in structures:
        for pattern, right in _LEFT:
            for match in pattern.finditer(name):
                other = name[: match.start()] + right + name[match.end() :]
                if other in structures and not _CHAMBER.search(name):
                    pairs[name] = other
    return tuple(pairs.items())


def stated_pairs(content: dict[str, Any], *, file: str) -> tuple[tuple[str, str], ...]:
    """The value of "pairs", a list of [left, right], in a JSON object."""
    pairs = entry(content, key="pairs", kind=list, file=file)
    if not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair) for pair in pairs
    ):
        raise InputError(f"{file}: 'pairs' is no list of [left, right]; correct the file")
    return tuple((left, right) for left, right in pairs)


def _hostile(name: str) -> str:
    """Why a name is refused whatever is on disk; empty when it is not."""
    if not name.strip() or len(name) > MAX_NAME:
        return f"is empty, no text, or longer than {MAX_NAME} characters"
    if any(unicodedata.category(character).startswith("C") for character in name) or "\\" in name:
        return "holds a backslash or a character that cannot be printed"
    if PureWindowsPath(name).drive or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return "is absolute, has a drive or goes up by '..'"
    return ""


def _hidden(path: Path, *, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object, unless a key is there twice: which of the two counts, nobody can know."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice[:60]!r} is there twice")
    return found


def _deeper_than(content: Any, *, levels: int) -> bool:
    if not isinstance(content, dict | list):
        return False
    parts = content.values() if isinstance(content, dict) else content
    return levels == 0 or any(_deeper_than(part, levels=levels - 1) for part in parts)
