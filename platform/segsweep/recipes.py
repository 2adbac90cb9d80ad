"""Recipes are plain files found by name: a trainable, a search space or a dataset is there as soon as its file is.

Looked up in the user's own project (`SEGSWEEP_PROJECT`), then this checkout, then the installed package. Every recipe has a
real import name (`segsweep.trainables.unet`), so it pickles and reaches Ray workers.
"""

import dataclasses
import importlib
import inspect
import json
import os
import pkgutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from segsweep.errors import RecipeError, unknown

Kind = Literal["trainables", "search_spaces", "datasets"]

# Part of the folders into which Ray unpacks `py_modules`, which `sweeps/cluster.py` makes of a project.
SENT = "py_modules_files"

# What a recipe of each kind must define (CONTRIBUTING.md says what each is); "A or b" is either of the two.
EXPORTS: Mapping[Kind, tuple[str, ...]] = {
    "trainables": ("Params", "build"),
    "search_spaces": ("TRAINABLE or ROWS", "space or ROWS"),
    "datasets": ("LABELS or labels", "CHANNELS or channels", "cases"),
}


def search_path(kind: Kind, *, packaged: Iterable[str]) -> list[str]:
    """Folders that hold recipes of one kind, first match wins."""
    folders = list(packaged)
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "platform" / "segsweep").is_dir():
        folders.insert(0, str(checkout / kind))
    project = os.environ.get("SEGSWEEP_PROJECT")
    if project:
        folders.insert(0, str(_sent(Path(project).expanduser().resolve()) / kind))
    return folders


def _sent(project: Path) -> Path:
    """The project, or the copy of it that its driver sent: other nodes of a cluster have no such folder, or one of yesterday."""
    copies = (Path(entry) / project.name for entry in sys.path if SENT in entry)
    return next((copy for copy in copies if copy.is_dir()), project)


def names(kind: Kind) -> list[str]:
    """Names of all recipes of one kind, sorted."""
    package = importlib.import_module(f"segsweep.{kind}")
    found = {module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")}
    return sorted(found)


def load(kind: Kind, *, name: str) -> ModuleType:
    """The recipe's module. Raises RecipeError with the nearest names when there is none, and for one that does not import."""
    if name not in names(kind):
        raise RecipeError(unknown(name, kind=f"{kind}/", known=names(kind)))
    try:
        recipe = importlib.import_module(f"segsweep.{kind}.{name}")
    except Exception as error:  # a recipe is a user's own code: whatever it raises, they are told where
        detail = " ".join(str(error).split())
        raise RecipeError(
            f"{kind}/{name}: cannot be imported ({type(error).__name__}: {detail}); correct it"
        ) from error
    missing = [
        export for export in EXPORTS[kind] if not any(hasattr(recipe, choice) for choice in export.split(" or "))
    ]
    if missing:
        raise RecipeError(
            f"{recipe.__file__}: defines no {' and no '.join(missing)}; expected {', '.join(EXPORTS[kind])}"
        )
    return recipe


def parse_pairs(texts: Iterable[str]) -> dict[str, str]:
    """KEY=VALUE texts as a dictionary, values still text. Raises RecipeError for a text without `=` and a key given twice."""
    pairs: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key or not value:
            raise RecipeError(f"{text!r} cannot be used: expected KEY=VALUE, for example epochs=200")
        if key in pairs:
            raise RecipeError(f"{key} was given twice ({pairs[key]} and {value}); expected it once")
        pairs[key] = value
    return pairs


def build_params(recipe: ModuleType, *, values: Mapping[str, Any]) -> Any:
    """The recipe's frozen `Params`, from values given as text or as Python values.

    `preset=NAME` first takes the recipe's own preset; the other values override it. Raises RecipeError that names the
    parameter, what was found and what was expected.
    """
    name = recipe.__name__.rpartition(".")[2]
    given = dict(values)
    preset = given.pop("preset", None)
    presets: Mapping[str, Mapping[str, Any]] = getattr(recipe, "PRESETS", {})
    if preset is not None and preset not in presets:
        raise RecipeError(unknown(str(preset), kind=f"presets of {name}", known=presets))
    merged = {**(presets[preset] if preset is not None else {}), **given}
    fields = {field.name for field in dataclasses.fields(recipe.Params)}
    for key in merged:
        if key not in fields:
            raise RecipeError(unknown(key, kind=f"parameters of {name}", known=fields))
    try:
        return TypeAdapter(recipe.Params).validate_python({key: parse_value(value) for key, value in merged.items()})
    except ValidationError as error:
        raise RecipeError(f"{name}: {_first_complaint(error, params=recipe.Params, given=merged)}") from None


def parameters(params: type) -> dict[str, str]:
    """Every parameter of a `Params` class with its default, or with what it must be where it has none."""
    texts = {}
    for field in dataclasses.fields(params):
        made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        words = _words(get_type_hints(params)[field.name])
        texts[field.name] = f"… (required: {words})" if made is dataclasses.MISSING else str(made)
    return texts


def meaning(params: type) -> str:
    """What a `Params` class and those that it extends say of their parameters."""
    texts = [(part.__name__, part.__doc__ or "") for part in params.__mro__ if dataclasses.is_dataclass(part)]
    # A dataclass without a docstring gets its signature as one.
    return "\n".join(inspect.cleandoc(text) for name, text in texts if text and not text.startswith(f"{name}("))


def params_json(params: Any) -> dict[str, Any]:
    """A Params value as JSON-able dictionary; `build_params` takes it back."""
    return json.loads(json.dumps(dataclasses.asdict(params)))


def parse_value(value: Any) -> Any:
    """Text from the command line as a Python value: JSON where it is JSON, `a,b,c` as a list, otherwise the text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return [parse_value(part.strip()) for part in value.split(",")] if "," in value else value


def _first_complaint(error: ValidationError, *, params: type, given: Mapping[str, Any]) -> str:
    detail = error.errors()[0]
    if not detail["loc"]:
        return detail["msg"].removeprefix("Value error, ")
    field = str(detail["loc"][0])
    words = _words(get_type_hints(params)[field])
    if field not in given:
        return f"{field}=… is required: expected {words}"
    return f"{field}={given[field]!r} cannot be used: expected {words}"


def _words(annotation: Any) -> str:
    """A parameter's type as a person says it."""
    choices = get_args(annotation)
    if get_origin(annotation) is Literal:
        return " or ".join(repr(choice) for choice in choices)
    if get_origin(annotation) is tuple and Ellipsis not in choices:
        return f"{len(choices)} values with commas between them, each {_words(choices[0])}"
    if isinstance(annotation, UnionType) or get_origin(annotation) is Union:
        return " or ".join(_words(choice) for choice in choices if choice is not NoneType)
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names.get(annotation, str(annotation))
