"""The facade: exactly the names that it lists, the functions behind the verbs, and nothing heavy before one is used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import segsweep

NAMES = [
    "Run", "SegsweepError", "SweepOptions", "Tracker", "as_trainable", "check", "connect", "convert", "current_workspace", "ensemble",
    "evaluate", "find_scans", "import_nnunet", "load_predictor", "open_store", "postprocess", "predict", "promote", "train", "tune",
]  # fmt: skip
HEAVY = ("ray", "mlflow", "torch", "SimpleITK", "numpy", "zarr", "optuna")


def test_the_list_of_names_is_exact() -> None:
    assert segsweep.__all__ == NAMES
    assert set(NAMES) <= set(dir(segsweep))


def test_types_and_values_come_from_the_same_place() -> None:
    """What a type checker reads (the imports under TYPE_CHECKING) is what `__getattr__` imports."""
    tree = ast.parse(Path(segsweep.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.asname or alias.name: ((node.module or "").removeprefix("segsweep."), alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == segsweep._ORIGINS
    assert sorted(typed) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_name_can_be_had(name: str) -> None:
    module, original = segsweep._ORIGINS[name]
    value = getattr(segsweep, name)
    assert callable(value)
    assert (value.__module__, value.__name__) == (f"segsweep.{module}", original)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'tunes'"):
        segsweep.tunes  # noqa: B018
    assert not hasattr(segsweep, "_nothing")


def test_importing_segsweep_is_light() -> None:
    code = f"import sys, segsweep; segsweep.Run; print(sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
