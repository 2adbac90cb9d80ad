"""The shape of the project, held as tests: import order, fences, and the names that collide with others' packages."""

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "platform" / "segsweep"
RECIPES = ("trainables", "search_spaces", "datasets")
# Each imports only itself and what stands before it.
ORDER = (
    "errors", "recipes", "run", "workspace", "terminal",
    "data", "learning", "inference", "evaluation", "models", "sweeps", "demo", "cli",
)  # fmt: skip
# Heavy packages and the only modules that import them.
FENCES = {
    "zarr": {"data/arrays.py"},
    "SimpleITK": {"data/readers.py", "data/dicom_pixels.py", "inference/writers.py"},
    "pydicom": {
        "data/dicom_file.py",
        "data/dicom_pixels.py",
        "data/rtstruct.py",
        "data/dicom_seg.py",
        "data/dicom_writing.py",
        "inference/rtstruct.py",
        "inference/dicom_seg.py",
    },
    "highdicom": {"inference/dicom_seg.py"},
    "contourpy": {"inference/rtstruct.py"},
    "pyarrow": {"data/storage.py"},
    "mlflow": {"models/*"},
    "optuna": {
        "sweeps/tuning_database.py",
        "sweeps/tuning_page.py",
        "sweeps/tuning_record.py",
        "sweeps/tuning_sampling.py",
        "sweeps/tuning_study.py",
        "sweeps/tuning_warm.py",
    },
    "ray": {"sweeps/*", "data/parallel.py"},
    "matplotlib": {"evaluation/*", "data/quality_report.py"},
    "typer": {"cli/*"},
}
LEARNING = {"torch", "numpy", "scipy", "safetensors", "segsweep"}


def sources() -> list[Path]:
    return sorted(ENGINE.rglob("*.py"))


@cache
def imported(path: Path) -> set[str]:
    """Absolute names of everything that a module imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    return path.relative_to(ENGINE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ENGINE).as_posix())
def test_modules_import_only_rooms_before_them(path: Path) -> None:
    here = room(path)
    if here in ("__init__", *RECIPES):
        return
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "segsweep" and len(parts) > 1:
            target = parts[1]
            assert target not in RECIPES, f"{path.name} imports the recipe folder {target}; load recipes by name"
            if target in ORDER:
                assert ORDER.index(target) <= ORDER.index(here), f"{here} imports {target}, which comes after it"


@pytest.mark.parametrize("package", FENCES)
def test_heavy_packages_enter_through_named_files(package: str) -> None:
    for path in sources():
        if any(name.split(".")[0] == package for name in imported(path)):
            relative = path.relative_to(ENGINE)
            allowed = FENCES[package]
            assert relative.as_posix() in allowed or f"{relative.parts[0]}/*" in allowed, (
                f"{relative} imports {package}"
            )


def test_learning_needs_torch_and_numpy_alone() -> None:
    for path in (ENGINE / "learning").glob("*.py"):
        outside = {name.split(".")[0] for name in imported(path)} - set(sys.stdlib_module_names) - LEARNING
        assert not outside, f"{path.name} imports {outside}"


# What runs code out of a file, or writes where a file says. Python's own ways to run code by name are the recipes' alone.
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "tarfile", "zipfile"}
UNSAFE_CALLS = {
    "eval", "exec", "__import__", "os.system", "os.popen", "torch.load", "torch.jit.load", "torch.export.load", "torch.hub.load",
    "torch.package.PackageImporter", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "shutil.unpack_archive", "runpy.run_path",
    "mlflow.pyfunc.load_model", "mlflow.pytorch.load_model", "ray.tune.Tuner.restore",
}  # fmt: skip
UNSAFE_OPTIONS = {("weights_only", False), ("allow_pickle", True), ("shell", True)}
RESTRICTED = 'torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)'


def unsafe(text: str) -> list[str]:
    """What a module does that a file from a stranger could turn into running code."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module in UNSAFE_MODULES:
            found += [alias.name for alias in node.names if alias.name != "UnpicklingError"]
        elif isinstance(node, ast.Call):
            options = {(one.arg, one.value.value) for one in node.keywords if isinstance(one.value, ast.Constant)}
            name = ast.unparse(node.func)
            found += [name] if name in UNSAFE_CALLS or options & UNSAFE_OPTIONS else []
    return found


def test_no_file_can_bring_code() -> None:
    for folder in (ENGINE, *(ROOT / name for name in RECIPES)):
        for path in folder.rglob("*.py"):
            text = path.read_text()
            if path == ENGINE / "learning" / "nnunet.py":
                assert text.count(RESTRICTED) == 1
                text = text.replace(RESTRICTED, "None")
            assert unsafe(text) == [], path


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from pickle import loads", "import torch\ntorch.load('x')", "np.load('x', allow_pickle=True)",
        "yaml.load(text)", "eval(text)", "subprocess.run(text, shell=True)", "f(weights_only=False)", "import zipfile",
    ],
)  # fmt: skip
def test_what_is_unsafe_is_seen(text: str) -> None:
    assert unsafe(text)


@pytest.mark.parametrize("folder", ("platform", *RECIPES))
def test_top_level_folders_are_no_packages(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


def test_platform_is_the_standard_library() -> None:
    code = "import platform; print(platform.system())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == os.uname().sysname


def test_a_recipe_brings_neither_mlflow_nor_ray() -> None:
    code = (
        "import sys; from segsweep import recipes; recipes.load('trainables', name='unet');"
        "print(sorted({'mlflow', 'ray', 'SimpleITK', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
