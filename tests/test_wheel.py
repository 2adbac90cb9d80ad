"""The wheel as a user gets it: recipes lie inside, it runs away from the checkout, and finds a project's own recipes."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from segsweep import recipes

ROOT = Path(__file__).resolve().parents[1]

TRAINABLE = '''"""A network of mine."""
from dataclasses import dataclass

from torch import nn

from segsweep.learning.params import TrainingParams


@dataclass(frozen=True, kw_only=True)
class Params(TrainingParams):
    """Nothing of its own."""

    width: int = 3


def build(params, task):
    return nn.Conv3d(len(task.channels), task.outputs, params.width)
'''
DATASET = '''"""Scans of mine."""
from segsweep.data.structures import LabelSet

LABELS = LabelSet(structures=("Liver",))
CHANNELS = ("CT",)


def cases(raw):
    return []
'''


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout without a network."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, cwd=out, check=True, capture_output=True, text=True)
    (found,) = out.glob("segsweep-*.whl")
    return found


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the installed wheel; its dependencies come from the environment of the tests."""
    target = tmp_path_factory.mktemp("installed") / "site"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(command, cwd=target.parent, check=True, capture_output=True, text=True)
    return target


def run_installed(code: str, *, site: Path, folder: Path, project: Path | None = None) -> str:
    """What the code prints, run away from the checkout with the installed wheel first on the path (isolated: -I)."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SEGSWEEP_", "PYTHON"))}
    if project:
        environment["SEGSWEEP_PROJECT"] = str(project)
    begin = f"import sys; sys.path.insert(0, {str(site)!r})\n"
    command = [sys.executable, "-I", "-c", begin + code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_engine_and_all_recipes_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    engine = {
        path.relative_to(ROOT / "platform").as_posix()
        for path in (ROOT / "platform").rglob("*")
        if path.suffix in (".py", ".css", ".js")
    }
    shipped = {f"segsweep/{kind}/{path.name}" for kind in recipes.EXPORTS for path in (ROOT / kind).glob("*.py")}
    assert found - {"segsweep/py.typed"} == engine | shipped


def test_the_wheel_brings_its_licence_and_its_command(site: Path) -> None:
    (information,) = site.glob("segsweep-*.dist-info")
    assert (information / "licenses" / "LICENSE").is_file()
    assert "segsweep = segsweep.cli:main" in (information / "entry_points.txt").read_text()
    assert (site / "bin" / "segsweep").is_file()


def test_the_installed_command_lists_the_recipes(site: Path, tmp_path: Path) -> None:
    code = "import segsweep; print(segsweep.__file__)\nfrom segsweep.cli import main; sys.exit(main(['list']))"
    shown = run_installed(code, site=site, folder=tmp_path).splitlines()
    assert Path(shown[0]).is_relative_to(site), "the checkout was seen in place of the wheel"
    listed = {line.split()[0] for line in shown[1:] if line.startswith("  ")}
    for kind in recipes.EXPORTS:
        assert set(recipes.names(kind)) <= listed
    assert {"unet", "phantom", "openkbp", "default"} <= listed
    assert not [line for line in shown if "cannot be imported" in line]


def test_a_project_of_ones_own_adds_recipes(site: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    for kind, name, text in (("trainables", "mynet", TRAINABLE), ("datasets", "myscans", DATASET)):
        (project / kind).mkdir(parents=True)
        (project / kind / f"{name}.py").write_text(text)
    code = (
        "from segsweep import recipes\n"
        "from segsweep.cli import main; main(['list', 'trainables']); main(['list', 'datasets']); main(['list', 'mynet'])\n"
        "net = recipes.load('trainables', name='mynet')\n"
        "print(net.__name__, net.__file__, recipes.build_params(net, values={'width': '5'}).width)\n"
        "print(recipes.load('datasets', name='myscans').LABELS.structures)"
    )
    shown = run_installed(code, site=site, folder=tmp_path, project=project)
    for line in (
        "  mynet              A network of mine.",
        "  unet  ",
        "  myscans            Scans of mine.",
        "  phantom  ",
        "  width = 3",
        f"segsweep.trainables.mynet {project / 'trainables' / 'mynet.py'} 5",
        "('Liver',)",
    ):
        assert line in shown


def test_recipes_and_engine_both_come_from_the_wheel(site: Path, tmp_path: Path) -> None:
    """A recipe imports the engine that it was shipped with."""
    code = (
        "from segsweep import recipes\n"
        "net = recipes.load('trainables', name='unet'); recipes.load('datasets', name='phantom')\n"
        "recipes.load('search_spaces', name='default')\n"
        "print(*sorted({m.__file__ for n, m in sys.modules.items() if n.startswith('segsweep') and m.__file__}), sep='\\n')"
    )
    files = run_installed(code, site=site, folder=tmp_path).split()
    assert len(files) > 10
    assert all(Path(file).is_relative_to(site) for file in files)
