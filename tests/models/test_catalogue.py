"""What is listed of registered models, and what asking for one of them costs."""

from pathlib import Path

import pytest

from segsweep.errors import ModelError
from segsweep.models import catalogue
from segsweep.models.tracking import DIGEST_TAG
from segsweep.workspace import Workspace


def test_an_address_asks_for_its_own_name_alone(
    tracker, workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("asked", "beside it"):
        tracker.client.create_registered_model(name)
        tracker.client.create_model_version(name, source=tmp_path.as_uri(), tags={DIGEST_TAG: "0" * 64})
    asked: list[str] = []
    listing = catalogue.listed_versions
    monkeypatch.setattr(
        catalogue, "listed_versions", lambda client, *, name: asked.append(name) or listing(client, name=name)
    )
    assert catalogue.resolve("models:/asked", workspace=workspace).version == 1
    assert asked == ["asked"]


def test_names_with_quotes_are_listed_with_the_others(tracker, workspace, tmp_path: Path) -> None:
    names = ('Bob\'s "best"', 'Bob_s "best"')
    for name in names:
        tracker.client.create_registered_model(name)
        tracker.client.create_model_version(name, source=tmp_path.as_uri())
    assert [version.uri for version in catalogue.models(workspace) if version.name in names] == [
        f"models:/{name}/1" for name in names
    ]


def test_a_name_without_versions_is_not_called_unknown(tracker, workspace) -> None:
    tracker.client.create_registered_model("bare")  # as a registration that was interrupted leaves it
    with pytest.raises(ModelError, match=r"^bare is registered without any version; register one"):
        catalogue.resolve("models:/bare", workspace=workspace)


@pytest.mark.parametrize(
    ("text", "dice"), [("0.8125", 0.8125), ("0", 0.0), ("nan", None), ("good", None), (None, None)]
)
def test_dice_of_a_version_is_a_number_or_nothing(text: str | None, dice: float | None) -> None:
    tags = {} if text is None else {"segsweep.dice": text}
    assert catalogue.Listed(name="a", version=1, digest="", aliases=(), tags=tags).dice == dice


def test_a_database_with_options_is_found(tracker, workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"{workspace.tracking_uri}?timeout=60"
    tracker.client.create_registered_model("optional")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(ModelError, match="optional is registered without any version"):
        catalogue.resolve("models:/optional", workspace=workspace)


def test_listing_makes_no_database(tmp_path: Path) -> None:
    assert catalogue.models(Workspace(root=tmp_path)) == []
    assert list(tmp_path.iterdir()) == []
