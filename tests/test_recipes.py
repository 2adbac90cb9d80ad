"""Recipes are found by name, in the user's project first; what cannot be used is named in one sentence."""

import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import segsweep.datasets
import segsweep.search_spaces
import segsweep.trainables
from segsweep import recipes
from segsweep.errors import RecipeError

WriteRecipe = Callable[[recipes.Kind, str, str], Path]


@pytest.fixture
def write_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WriteRecipe]:
    """Puts a recipe into a project of the user's own, which is on the search path."""
    monkeypatch.setenv("SEGSWEEP_PROJECT", str(tmp_path))
    for package, kind in (
        (segsweep.trainables, "trainables"),
        (segsweep.search_spaces, "search_spaces"),
        (segsweep.datasets, "datasets"),
    ):
        monkeypatch.setattr(package, "__path__", recipes.search_path(kind, packaged=[]))  # type: ignore[arg-type]

    def write(kind: recipes.Kind, name: str, text: str) -> Path:
        (tmp_path / kind).mkdir(exist_ok=True)
        path = tmp_path / kind / f"{name}.py"
        path.write_text(textwrap.dedent(text))
        return path

    yield write


def test_the_folders_are_the_registry() -> None:
    checkout = Path(__file__).resolve().parents[1]
    for kind in recipes.EXPORTS:
        expected = sorted(path.stem for path in (checkout / kind).glob("*.py") if not path.stem.startswith("_"))
        assert recipes.names(kind) == expected
        assert expected


def test_a_file_in_the_users_project_is_found_and_comes_first(write_recipe: WriteRecipe) -> None:
    path = write_recipe("search_spaces", "of_mine_found", 'TRAINABLE = "unet"\ndef space(trial, plan): return {}\n')
    assert "of_mine_found" in recipes.names("search_spaces")
    assert "default" in recipes.names("search_spaces")
    recipe = recipes.load("search_spaces", name="of_mine_found")
    assert (recipe.__file__, recipe.__name__) == (str(path), "segsweep.search_spaces.of_mine_found")
    assert recipes.search_path("search_spaces", packaged=["/packaged"])[0] == str(path.parent)
    assert recipes.search_path("search_spaces", packaged=["/packaged"])[-1] == "/packaged"


def test_names_with_an_underscore_are_private(write_recipe: WriteRecipe) -> None:
    write_recipe("datasets", "_shared_by_mine", "")
    assert "_shared_by_mine" not in recipes.names("datasets")


def test_an_unknown_name_brings_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"no 'unett' among trainables/ .*did you mean 'unet'\?"):
        recipes.load("trainables", name="unett")


@pytest.mark.parametrize(
    ("text", "complaint"),
    (
        ("def broken(:\n", r"trainables/mine_{}: cannot be imported \(SyntaxError: .*mine_{}\.py, line 1"),
        (
            "import no_such_package\n",
            r"trainables/mine_{}: cannot be imported \(ModuleNotFoundError: .*no_such_package",
        ),
        ("1 / 0\n", r"trainables/mine_{}: cannot be imported \(ZeroDivisionError"),
        ("class Params: pass\n", r"mine_{}\.py: defines no build; expected Params, build"),
        ("", r"mine_{}\.py: defines no Params and no build; expected Params, build"),
    ),
    ids=("syntax", "package", "arithmetic", "no build", "empty"),
)
def test_a_recipe_that_cannot_be_used_is_named(
    write_recipe: WriteRecipe, text: str, complaint: str, request: pytest.FixtureRequest
) -> None:
    label = request.node.callspec.id.replace(" ", "_")
    write_recipe("trainables", f"mine_{label}", text)
    with pytest.raises(RecipeError, match=complaint.format(label, label)) as raised:
        recipes.load("trainables", name=f"mine_{label}")
    assert "\n" not in str(raised.value)


def test_values_come_as_text_or_as_python() -> None:
    unet = recipes.load("trainables", name="unet")
    as_text = recipes.build_params(unet, values={"epochs": "7", "patch_size": "16,32,48", "learning_rate": "1e-3"})
    as_values = recipes.build_params(unet, values={"epochs": 7, "patch_size": [16, 32, 48], "learning_rate": 0.001})
    assert as_text == as_values
    assert as_text.patch_size == (16, 32, 48)
    assert recipes.build_params(unet, values=recipes.params_json(as_text)) == as_text


def test_a_preset_comes_first_and_values_override_it() -> None:
    unet = recipes.load("trainables", name="unet")
    params = recipes.build_params(unet, values={"preset": "small", "epochs": 3})
    assert params.epochs == 3
    assert params.stem_stride == unet.PRESETS["small"]["stem_stride"]


@pytest.mark.parametrize(
    ("values", "complaint"),
    (
        ({"epochs": "abc"}, r"unet: epochs='abc' cannot be used: expected a whole number"),
        ({"epochs": "1.5"}, r"unet: epochs='1\.5' cannot be used: expected a whole number"),
        ({"epochs": "0"}, r"unet: epochs=0 cannot be used: expected at least 1"),
        ({"learning_rate": "fast"}, r"unet: learning_rate='fast' cannot be used: expected a number"),
        (
            {"loss": "dise"},
            r"unet: loss='dise' cannot be used: expected 'dice_ce' or 'dice_focal' or .* or 'multitalent'",
        ),
        ({"patch_size": "8,16"}, r"unet: patch_size='8,16' cannot be used: expected 3 values .* each a whole number"),
        ({"patch_size": [8, "x", 8]}, r"unet: patch_size=\[8, 'x', 8\] cannot be used: expected 3 values"),
        ({"epoch": "3"}, r"no 'epoch' among parameters of unet .*did you mean 'epochs'\?"),
        ({"preset": "smal"}, r"no 'smal' among presets of unet .*did you mean 'small'\?"),
    ),
    ids=str,
)
def test_values_that_cannot_be_used_are_named(values: Mapping[str, Any], complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        recipes.build_params(recipes.load("trainables", name="unet"), values=values)


def test_a_parameter_without_default_is_asked_for(write_recipe: WriteRecipe) -> None:
    text = '''
        from dataclasses import dataclass, field

        from segsweep.learning.params import TrainingParams


        @dataclass(frozen=True, kw_only=True)
        class Params(TrainingParams):
            """`width` is in voxels."""

            width: int
            kernels: tuple[int, ...] = field(default_factory=lambda: (3, 3))


        def build(params, task): ...
    '''
    write_recipe("trainables", "mine_required", text)
    recipe = recipes.load("trainables", name="mine_required")
    with pytest.raises(RecipeError, match=r"^mine_required: width=… is required: expected a whole number$"):
        recipes.build_params(recipe, values={"epochs": 3})
    assert recipes.build_params(recipe, values={"width": "5"}).width == 5
    listed = recipes.parameters(recipe.Params)
    assert (listed["width"], listed["kernels"]) == ("… (required: a whole number)", "(3, 3)")
    assert (listed["epochs"], listed["patch_size"]) == ("1000", "None")
    assert recipes.meaning(recipe.Params).startswith("`width` is in voxels.\nThe recommended run is the default")


@pytest.mark.parametrize(
    ("text", "value"),
    (
        ("3", 3), ("1e-2", 0.01), ("true", True), ("null", None), ("abc", "abc"), ("a,b", ["a", "b"]), ("1,2,3", [1, 2, 3]),
        ("[1, 2]", [1, 2]), ("", ""), ("models:/a/1,models:/a/2", ["models:/a/1", "models:/a/2"]),
    ),
)  # fmt: skip
def test_text_becomes_a_value(text: str, value: object) -> None:
    assert recipes.parse_value(text) == value


def test_pairs() -> None:
    assert recipes.parse_pairs(["a=1", "b=x=y"]) == {"a": "1", "b": "x=y"}
    for bad, complaint in ((["epochs"], "'epochs' cannot"), (["=3"], "'=3' cannot"), (["a="], "'a=' cannot")):
        with pytest.raises(RecipeError, match=f"{complaint} be used: expected KEY=VALUE"):
            recipes.parse_pairs(bad)
    with pytest.raises(RecipeError, match="a was given twice"):
        recipes.parse_pairs(["a=1", "a=2"])
