import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from yaozarrs import v05, validate_zarr_store

from segsweep import recipes
from segsweep.data.building import build_case, derive_grid
from segsweep.data.case import CaseSource
from segsweep.data.manifest import committed, read_manifest, seal, unseal, write_json
from segsweep.data.planning import AIR_HU
from segsweep.data.readers import read_labels, read_scan
from segsweep.data.store import grid_key, open_store
from segsweep.data.structures import LabelSet
from segsweep.errors import StoreError
from segsweep.inference.writers import write_image


def test_native_grids_are_the_scans_to_the_voxel(phantom_store: Path, phantom_raw: Path) -> None:
    store = open_store(phantom_store)
    orientations = set()
    for source in recipes.load("datasets", name="phantom").cases(phantom_raw):
        record = store.cases[source.case_id]
        turn = record.source_geometry.reorientation
        orientations.add((turn.axes, turn.flips))
        grid = store.grid(source.case_id)
        image = grid.read_image()
        for channel, path in enumerate(source.images):
            scan = read_scan(path)
            assert scan.geometry == record.source_geometry
            assert np.array_equal(turn.invert(image[channel]), scan.voxels)
        label = turn.invert(grid.read_label())
        for file in source.labels:
            voxels = read_labels(file.path).voxels
            for value, names in file.values.items():
                for name in names:
                    mask = store.table.mask(label, structure=name)
                    assert mask[voxels == value].all(), (source.case_id, name)
    assert len(orientations) >= 3


def test_every_structure_voxel_came_from_a_file(phantom_store: Path, phantom_raw: Path) -> None:
    store = open_store(phantom_store)
    for source in recipes.load("datasets", name="phantom").cases(phantom_raw):
        expected: dict[str, int] = {}
        claimed: dict[str, np.ndarray] = {}
        for file in source.labels:
            voxels = read_labels(file.path).voxels
            for value, names in file.values.items():
                for name in names:
                    claimed[name] = claimed.get(name, np.zeros(voxels.shape, bool)) | (voxels == value)
        expected = {name: int(mask.sum()) for name, mask in claimed.items()}
        label = store.grid(source.case_id).read_label()
        for name in store.table.labels.structures:
            assert store.table.mask(label, structure=name).sum() == expected.get(name, 0)


def test_padding_is_kept_in_the_scans_own_grid_and_air_in_training(
    tiny_store: Callable[..., Path], tmp_path: Path
) -> None:
    store = open_store(tiny_store("padded", labels=LabelSet(structures=("organ",)), cases={"a": np.ones((4, 6, 8))}))
    image = np.full((4, 6, 8), -3024, dtype=np.int16)
    image[1:3] = 40
    geometry = store.cases["a"].source_geometry
    write_image(image, geometry=geometry, path=tmp_path / "raw-padded" / "a_0000.nii.gz")
    source = CaseSource(case_id="a", images=(tmp_path / "raw-padded" / "a_0000.nii.gz",))
    record = build_case(source, labels=store.table.labels, folder=Path(store.home("a")))
    store = replace(store, cases={"a": replace(store.cases["a"], digest=record["digest"], atoms=((),))})
    assert store.grid("a").read_image().min() == -3024
    for spacing in (store.cases["a"].geometry.spacing, (1.0, 1.0, 1.0)):
        derive_grid(Path(store.home("a")), spacing=spacing)
        assert store.grid("a", spacing).read_image().min() == AIR_HU


def test_regions_equal_slices_of_the_whole(phantom_store: Path) -> None:
    store = open_store(phantom_store)
    grid = store.grid("phantom_000", store.plan.spacing)
    region = (slice(3, 20), slice(10, 50), slice(0, 33))
    assert np.array_equal(grid.read_image(region), grid.read_image()[(slice(None), *region)])
    assert np.array_equal(grid.read_label(region), grid.read_label()[region])


def test_foreground_samples_lie_in_their_atom(phantom_store: Path) -> None:
    store = open_store(phantom_store)
    grid = store.grid("phantom_000", store.plan.spacing)
    label = grid.read_label()
    assert set(grid.foreground) == set(np.unique(label)) - {0}
    for atom, voxels in grid.foreground.items():
        assert (label[tuple(voxels.T)] == atom).all()
        assert len(voxels) == min(int((label == atom).sum()), 10_000)


def test_zarr_python_reads_a_case_as_it_is(phantom_store: Path) -> None:
    store = open_store(phantom_store)
    group = zarr.open_group(str(phantom_store / "cases" / "phantom_000" / "grids" / "native"), mode="r")
    image = group["image"]
    assert isinstance(image, zarr.Array)
    assert np.array_equal(image[...], store.grid("phantom_000").read_image())
    ome: Any = group.attrs["ome"]
    assert ome["version"] == "0.5"
    assert [axis["name"] for axis in ome["multiscales"][0]["axes"]] == ["c", "z", "y", "x"]


@pytest.mark.filterwarnings("error")
def test_every_grid_is_ome_zarr_to_a_validator_of_others(okbp_store: Path) -> None:
    """Their tool takes groups, arrays, types of axes and paths for OME-Zarr 0.5; what it cannot know is in millimetres and in place."""
    grids = sorted(path for path in (okbp_store / "cases").glob("*/grids/*") if path.is_dir())
    assert len(grids) == 4  # native and training grid of two cases
    for folder in grids:
        image = validate_zarr_store(folder).ome_metadata(version="0.5")
        labels = validate_zarr_store(folder / "labels").ome_metadata(version="0.5")
        atoms = validate_zarr_store(folder / "labels" / "atoms").ome_metadata(version="0.5")
        assert (
            isinstance(image, v05.Image) and isinstance(labels, v05.LabelsGroup) and isinstance(atoms, v05.LabelImage)
        )
        spacing = json.loads((folder / "zarr.json").read_bytes())["attributes"]["segsweep"]["geometry"]["spacing"]
        assert next((axis.name, axis.type) for axis in image.multiscales[0].axes) == ("c", "channel")
        for group, axes in ((image, image.multiscales[0].axes[1:]), (atoms, atoms.multiscales[0].axes)):
            assert [(axis.name, axis.type, axis.unit) for axis in axes] == [(n, "space", "millimeter") for n in "zyx"]
            assert group.multiscales[0].datasets[0].scale_transform.scale[-3:] == spacing
        assert labels.labels == ["atoms"]
        source = atoms.image_label.source
        assert source is not None and (folder / "labels" / "atoms" / str(source.image)).resolve() == folder.resolve()


@pytest.mark.parametrize(
    ("group", "broken"),
    [
        ("", {"axes": [{"name": name, "type": "space"} for name in "czyx"]}),
        ("", {"datasets": [{"path": "gone", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1, 1]}]}]}),
        ("labels/atoms", {"datasets": []}),
    ],
)
def test_the_validator_does_refuse(okbp_store: Path, tmp_path: Path, group: str, broken: dict[str, Any]) -> None:
    folder = shutil.copytree(next((okbp_store / "cases").glob("*/grids/native")), tmp_path / "native")
    path = folder / group / "zarr.json"
    values = json.loads(path.read_bytes())
    values["attributes"]["ome"]["multiscales"][0] |= broken
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="validation error"):
        validate_zarr_store(folder)


@pytest.fixture
def copy(phantom_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantom_store, tmp_path / "store"))


def shard(store: Path, array: str) -> Path:
    files = [
        path for path in (store / "cases" / "phantom_000" / "grids" / "native" / array).rglob("*") if path.is_file()
    ]
    return max(files, key=lambda path: path.stat().st_size)


def test_a_deleted_or_cut_shard_is_named_before_anything_is_read(copy: Path) -> None:
    victim = shard(copy, "image")
    data = victim.read_bytes()
    victim.write_bytes(data[:-10])
    with pytest.raises(StoreError, match=r"phantom_000: grids/native/image, shard c/.* has \d+ bytes, expected \d+;"):
        open_store(copy).grid("phantom_000")
    victim.unlink()
    with pytest.raises(StoreError, match=r"phantom_000: grids/native/image, shard c/.* is missing"):
        open_store(copy).grid("phantom_000")


@pytest.mark.parametrize("array", ["image", "labels/atoms/values"])
def test_a_flipped_bit_is_never_read_as_a_voxel(copy: Path, array: str) -> None:
    victim = shard(copy, array)
    original = victim.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(original), 10):
        data = bytearray(original)
        data[position] ^= 1 << 3
        victim.write_bytes(data)
        with pytest.raises(StoreError, match=r"phantom_000.*native.*" + array):
            grid = open_store(copy).grid("phantom_000")
            grid.read_image() if array == "image" else grid.read_label()


def test_a_newer_format_is_refused(copy: Path) -> None:
    index = json.loads((copy / "index.json").read_text())
    write_json(copy / "index.json", {**index, "format": 99})
    with pytest.raises(StoreError, match="format 99 found, this segsweep reads 3"):
        open_store(copy)


def commit_again(folder: Path, *, shard: str, content: bytes) -> None:
    """The case as if it had been converted to a shard of this content; without derived grids."""
    with committed(folder) as partial:
        shutil.copytree(folder, partial, ignore=shutil.ignore_patterns("*x*x*", "manifest.json"), dirs_exist_ok=True)
        (partial / shard).write_bytes(content)


def test_swapped_shards_of_equal_size_are_named_before_anything_is_read(copy: Path) -> None:
    cases = [copy / "cases" / name for name in ("phantom_000", "phantom_001")]
    path = shard(copy, "image").relative_to(cases[0]).as_posix()
    contents = [(case / path).read_bytes() for case in cases]
    index = json.loads((copy / "index.json").read_text())
    for record, case, content in zip(index["cases"], cases, contents, strict=False):
        commit_again(case, shard=path, content=bytes(max(map(len, contents)) - len(content)) + content)
        record["digest"] = read_manifest(case, name="").digest
    (copy / "index.json").write_bytes(seal({key: value for key, value in index.items() if key != "sha256"}))
    assert open_store(copy).grid("phantom_000")
    contents = [(case / path).read_bytes() for case in cases]
    assert len(contents[0]) == len(contents[1])
    for case, content in zip(cases, reversed(contents), strict=True):
        (case / path).write_bytes(content)
        with pytest.raises(StoreError, match=rf"{case.name}: grids/native/image, shard c/.* ends with other bytes"):
            open_store(copy).grid(case.name)


def test_a_grid_of_another_case_or_conversion_is_refused(copy: Path) -> None:
    store = open_store(copy)
    case, other = (copy / "cases" / name for name in ("phantom_000", "phantom_001"))
    derived = grid_key(store.cases["phantom_000"].geometry, spacing=store.plan.spacing)
    theirs = next(path for path in (other / "grids").iterdir() if path.name != "native")
    shutil.rmtree(case / "grids" / derived)
    shutil.copytree(theirs, case / "grids" / derived)
    with pytest.raises(StoreError, match=rf"phantom_000/{derived}: is of another conversion than index\.json"):
        store.grid("phantom_000", store.plan.spacing)
    shutil.rmtree(case)
    shutil.copytree(other, case)
    with pytest.raises(StoreError, match=r"phantom_000/native: is of another conversion than index\.json"):
        store.grid("phantom_000")


def test_a_flipped_byte_of_the_index_is_named(copy: Path) -> None:
    path = copy / "index.json"
    original = path.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(original), 50):
        data = bytearray(original)
        data[position] ^= 1 << 1
        path.write_bytes(data)
        with pytest.raises(StoreError, match=r"index\.json"):
            open_store(copy)


def test_an_index_is_short_and_parsed_once(phantom_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hundred thousand cases it has hundreds of megabytes."""
    path, parsed = phantom_store / "index.json", []
    monkeypatch.setattr(json, "loads", lambda text, loads=json.loads: parsed.append(len(text)) or loads(text))
    open_store(phantom_store)
    assert parsed == [path.stat().st_size]
    monkeypatch.undo()
    assert path.stat().st_size < 0.8 * len(json.dumps(json.loads(path.read_text()), indent=1))


def test_what_cases_have_in_common_is_written_and_kept_once(phantom_store: Path) -> None:
    index, cases = json.loads((phantom_store / "index.json").read_text()), open_store(phantom_store).cases.values()
    for name in ("atoms", "annotated"):
        values = [getattr(case, name) for case in cases]
        assert len(index["alike"][name]) == len(set(values))
        assert {type(case[name]) for case in index["cases"]} == {int}
        assert len({id(value) for value in values}) == len(set(values)) < len(values)


def test_a_cut_index_is_named(copy: Path) -> None:
    (copy / "index.json").write_text((copy / "index.json").read_text()[:100])
    with pytest.raises(StoreError, match=r"index\.json: cannot be read"):
        open_store(copy)


def test_no_store_and_unknown_case(phantom_store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store found"):
        open_store(tmp_path)
    with pytest.raises(StoreError, match=r"no 'fantom_004' among cases .* did you mean 'phantom_004'"):
        open_store(phantom_store).grid("fantom_004")


def test_an_unreadable_plan_is_named(copy: Path) -> None:
    (copy / "plan.json").write_text("{")
    with pytest.raises(StoreError, match=r"plan\.json: cannot be used"):
        _ = open_store(copy).plan


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("spacing", [0, 1, 1], r"spacing is \(0, 1, 1\), expected 0\.05 to 20\.0 mm"),
        ("spacing", [1, 1], "index out of range"),
        ("patch_size", [64, 64, 0.5], "expected whole numbers from 1"),
        ("batch_size", "2", "expected whole numbers from 1"),
        ("normalisation", [], "has 0 entries, expected 2"),
        ("normalisation", [{"scheme": "ct", "deviation": 0}] * 2, "deviation above 0"),
        ("normalisation", [{"scheme": "ct", "mean": float("nan")}] * 2, "finite numbers"),
        ("head", "softmin", "expected 'softmax' or 'sigmoid'"),
    ],
)
def test_a_plan_edited_into_nonsense_is_refused(copy: Path, field: str, value: Any, message: str) -> None:
    plan = json.loads((copy / "plan.json").read_text())
    (copy / "plan.json").write_text(json.dumps({**plan, field: value}))
    with pytest.raises(StoreError, match=rf"plan\.json: cannot be used \(.*{message}"):
        _ = open_store(copy).plan


DEEP = object()


def altered(value: Any, *, path: tuple[str | int, ...], to: Any) -> Any:
    """A document with another value at a place."""
    if not path:
        return to
    items = value.items() if isinstance(value, dict) else enumerate(value)
    changed = {key: altered(item, path=path[1:], to=to) if key == path[0] else item for key, item in items}
    return changed if isinstance(value, dict) else list(changed.values())


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("cases", 0, "case_id"), "../../outside"),
        (("cases", 0, "case_id"), "/etc/passwd"),
        (("cases", 0, "case_id"), "a\x1b[2Jb"),
        (("cases", 0, "case_id"), ["a"]),
        (("cases", 0, "geometry", "shape"), [10**6, 10**6, 10**6]),
        (("cases", 0, "geometry", "shape"), [4096, 4096, 4096]),
        (("cases", 0, "geometry", "shape"), [1, 1]),
        (("cases", 0, "geometry", "shape"), [-1, 5, 5]),
        (("cases", 0, "geometry", "spacing"), [float("nan"), 1, 1]),
        (("cases", 0, "geometry", "spacing"), [1e-9, 1, 1]),
        (("cases", 0, "geometry", "origin"), [1e999, 0, 0]),
        (("cases", 0, "source_geometry", "direction"), [1]),
        (("cases", 0, "atoms"), [[], [99]]),
        (("cases", 0, "atoms"), 99),
        (("cases", 0, "atoms"), -1),
        (("cases", 0, "atoms"), True),
        (("cases", 0, "voxels"), [1] * 99),
        (("cases", 0, "voxels"), {"a": 1}),
        (("cases", 0, "annotated"), 5),
        (("cases", 0, "annotated"), -1),
        (("alike",), [[]]),
        (("alike", "atoms"), []),
        (("alike", "atoms", 0), [[], [99]]),
        (("alike", "annotated", 0), 5),
        (("cases",), 7),
        (("cases",), [[]]),
        (("atoms",), [[], [99]]),
        (("atoms",), [[], [-5]]),
        (("atoms",), "a"),
        (("labels",), {}),
        (("labels", "structures"), [["a"], ["b"]]),
        (("labels", "pairs"), [[1, 2, 3]]),
        (("folds",), 3),
        (("digest",), DEEP),
    ],
)
def test_a_hostile_index_is_one_sentence(
    okbp_store: Path, tmp_path: Path, path: tuple[str | int, ...], to: Any
) -> None:
    """Its checksum fits: whoever writes an index seals it too."""
    body = unseal((okbp_store / "index.json").read_bytes(), name="index").body
    text = seal(altered(dict(body), path=path, to="deep" if to is DEEP else to))
    if to is DEEP:
        rest = text[text.index(b",") + 1 :].replace(b'"deep"', b"[" * 100_000 + b"]" * 100_000)
        text = b'{\n "sha256": "%s",%s' % (hashlib.sha256(rest).hexdigest().encode(), rest)
    (tmp_path / "index.json").write_bytes(text)
    with pytest.raises(StoreError, match=r"index\.json") as raised:
        open_store(tmp_path)
    assert len(str(raised.value)) < 600 and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "body",
    [
        {"source": "", "files": []},
        {"source": "", "files": {"case.json": 1}},
        {"source": "", "files": {"case.json": {"bytes": 1e999, "sha256": "", "tail": ""}}},
        {"files": {}},
    ],
)
def test_a_hostile_manifest_is_one_sentence(okbp_store: Path, tmp_path: Path, body: dict[str, Any]) -> None:
    copy = Path(shutil.copytree(okbp_store, tmp_path / "store"))
    (copy / "cases" / "okbp_000" / "manifest.json").write_bytes(seal(body))
    with pytest.raises(StoreError, match=r"okbp_000: manifest\.json: cannot be used"):
        open_store(copy).grid("okbp_000")


def test_training_and_validation_cases_are_disjoint(phantom_store: Path) -> None:
    store = open_store(phantom_store)
    held_out = set(store.held_out("validation"))
    seen: set[str] = set()
    for fold in range(5):
        training, validation = set(store.training(fold)), set(store.validation(fold))
        assert not training & validation
        assert not (training | validation) & held_out
        seen |= validation
    assert seen == {case for case in store.held_out("train") if store.cases[case].annotated}
    assert store.validation("all") == ()
    assert store.num_folds == 5
    assert set(store.training("all")) == set(store.held_out("train"))
