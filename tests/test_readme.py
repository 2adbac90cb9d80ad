"""The README's promises that a machine can hold: its commands exist, its map is complete, its example dataset works."""

import re
import shlex
import textwrap
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from segsweep import recipes
from segsweep.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = "".join(
    (ROOT / "docs" / name).read_text()
    for name in ("methods.md", "sweeps.md", "results.md", "troubleshooting.md", "cluster.md")
)
FILE_MAP = (ROOT / "docs" / "map.md").read_text()


def test_the_file_map_names_every_module_once() -> None:
    listed = re.findall(r"^    ((?:segsweep|trainables|search_spaces|datasets)/\S+\.py) ", FILE_MAP, flags=re.MULTILINE)
    engine = (path.relative_to(ROOT / "platform") for path in (ROOT / "platform" / "segsweep").rglob("*.py"))
    modules = [path.as_posix() for path in engine if path.name != "__init__.py"]
    recipe_files = [
        f"{kind}/{path.name}"
        for kind in ("trainables", "search_spaces", "datasets")
        for path in (ROOT / kind).glob("*.py")
    ]
    assert sorted(listed) == sorted([*modules, *recipe_files])


def test_both_commands_stand_on_the_first_screen() -> None:
    first_screen = README.splitlines()[:20]
    targets = re.findall(r"^(\w+): ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for command in ("demo", "test"):
        assert any(line.strip().startswith(f"make {command}") for line in first_screen)
        assert command in targets


@pytest.mark.parametrize("line", re.findall(r"^    (segsweep .*)$", README + PAGES, flags=re.MULTILINE))
def test_every_printed_command_is_understood(line: str) -> None:
    command, arguments = get_command(app), shlex.split(line.partition("#")[0])[1:]
    while isinstance(command, TyperGroup):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    with command.make_context("", arguments):
        pass


def test_the_example_dataset_is_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = re.search(r"    # datasets/clinic\.py\n(.*?)\n\n\w", README, flags=re.DOTALL)
    assert block
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "clinic.py").write_text(textwrap.dedent(block[1]))
    (tmp_path / "raw" / "images").mkdir(parents=True)
    (tmp_path / "raw" / "images" / "a.nii.gz").touch()
    package = __import__("segsweep.datasets", fromlist=["datasets"])
    monkeypatch.setattr(package, "__path__", [str(tmp_path / "datasets"), *package.__path__])
    clinic = recipes.load("datasets", name="clinic")
    (case,) = clinic.cases(tmp_path / "raw")
    assert case.case_id == "a"
    assert case.annotated == clinic.LABELS.structures
