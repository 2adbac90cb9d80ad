import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from segsweep.data.manifest import (
    MANIFEST,
    TAIL_BYTES,
    check_folder,
    committed,
    differences,
    read_file,
    read_json,
    read_manifest,
    remove_leftovers,
    seal,
    unseal,
    write_json,
)
from segsweep.errors import InputError, StoreError

# (file of the folder, its content)
CONTENT = {"case.json": b"{}", "grids/native/image/c/0/0": bytes(range(256)) * 1000, "empty": b""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with committed(tmp_path / "case") as partial:
        write(partial)
    return tmp_path / "case"


def write(folder: Path) -> None:
    for relative, content in CONTENT.items():
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        (folder / relative).write_bytes(content)


def test_a_sealed_value_comes_back_and_is_plain_json() -> None:
    body = {"format": 2, "cases": [{"case_id": "a"}]}
    sealed = unseal(seal(body), name="index.json")
    assert sealed.body == body
    assert json.loads(seal(body)) == {"sha256": sealed.digest, **body}


def test_any_changed_byte_breaks_the_seal() -> None:
    text = seal({"format": 2, "cases": []})
    for position in range(len(text)):
        for flip in (1, 2, 32, 128):
            changed = bytearray(text)
            changed[position] ^= flip
            with pytest.raises(StoreError, match=r"index\.json is damaged: its checksum does not fit"):
                unseal(bytes(changed), name="index.json")


def test_a_committed_folder_is_as_it_was_written(folder: Path) -> None:
    manifest = check_folder(folder, name="case", depth="deep")
    assert set(manifest.files) == set(CONTENT)
    assert manifest.num_bytes == sum(map(len, CONTENT.values()))
    assert read_file(folder, relative="case.json", manifest=manifest, name="case") == b"{}"


def test_equal_content_has_equal_digests_and_other_content_has_not(folder: Path, tmp_path: Path) -> None:
    digests = set()
    for name, source in (("b", ""), ("c", "")):
        with committed(tmp_path / name, source=source) as partial:
            write(partial)
        digests.add(read_manifest(tmp_path / name, name=name).digest)
    assert digests == {read_manifest(folder, name="case").digest}
    with committed(tmp_path / "d", source="other") as partial:
        write(partial)
    assert read_manifest(tmp_path / "d", name="d").digest not in digests


@pytest.mark.parametrize("depth", ["quick", "deep"])
def test_a_missing_cut_or_linked_file_is_named(folder: Path, tmp_path: Path, depth: str) -> None:
    victim = folder / "grids/native/image/c/0/0"
    content = victim.read_bytes()
    victim.write_bytes(content[:-1])
    with pytest.raises(
        StoreError, match=r"case: grids/native/image, shard c/0/0 has 255999 bytes, expected 256000; run"
    ):
        check_folder(folder, name="case", depth=depth)  # type: ignore[arg-type]
    victim.unlink()
    with pytest.raises(StoreError, match=r"case: grids/native/image, shard c/0/0 is missing"):
        check_folder(folder, name="case", depth=depth)  # type: ignore[arg-type]
    (tmp_path / "elsewhere").write_bytes(content)
    victim.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"shard c/0/0 is a link or lies outside the folder"):
        check_folder(folder, name="case", depth=depth)  # type: ignore[arg-type]


def test_a_changed_byte_near_the_end_is_seen_quickly_and_any_other_deeply(folder: Path) -> None:
    victim = folder / "grids/native/image/c/0/0"
    content = bytearray(victim.read_bytes())
    for position in np.random.default_rng(0).integers(0, len(content), 20):
        changed = content.copy()
        changed[position] ^= 1
        victim.write_bytes(changed)
        manifest = read_manifest(folder, name="case")
        assert len(list(differences(folder, manifest=manifest, depth="deep"))) == 1
        assert len(list(differences(folder, manifest=manifest, depth="quick"))) == (
            position >= len(content) - TAIL_BYTES
        )


def test_a_changed_file_is_not_read(folder: Path) -> None:
    manifest = read_manifest(folder, name="case")
    (folder / "case.json").write_bytes(b"[]")
    with pytest.raises(StoreError, match=r"case: case\.json holds other bytes"):
        read_file(folder, relative="case.json", manifest=manifest, name="case")


def test_a_manifest_cannot_point_out_of_its_folder(folder: Path) -> None:
    entry = read_manifest(folder, name="case").files["case.json"]
    for path in ("../case/case.json", str(folder / "case.json")):
        (folder / MANIFEST).write_bytes(seal({"source": "", "files": {path: entry}}))
        with pytest.raises(StoreError, match="lies outside the folder"):
            check_folder(folder, name="case")


def test_no_manifest_is_named(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    with pytest.raises(StoreError, match=r"case: no readable manifest\.json; run"):
        check_folder(folder, name="case")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "case"
    with committed(target) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError), committed(target) as folder:
        (folder / "a").write_text("new")
        raise RuntimeError
    assert (target / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["case"]


def test_a_second_commit_takes_the_place_of_the_first(folder: Path) -> None:
    with committed(folder) as partial:
        (partial / "b").write_text("new")
    assert sorted(path.name for path in folder.iterdir()) == ["b", MANIFEST]
    assert [path.name for path in folder.parent.iterdir()] == ["case"]


def test_leftovers_are_removed_and_nothing_else(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name(".case.0a1b2c3d.partial"))
    shutil.copytree(folder, folder.with_name(".case.0a1b2c3d.old"))
    folder.with_name(".index.json.partial").write_text("{")
    folder.with_name(".lock").touch()
    remove_leftovers(folder.parent)
    assert sorted(path.name for path in folder.parent.iterdir()) == [".lock", "case"]


def test_what_another_conversion_took_for_a_leftover_is_never_committed(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="another conversion has taken over"), committed(tmp_path / "case") as partial:
        write(partial)
        remove_leftovers(tmp_path)
        partial.mkdir()
        (partial / "case.json").write_text("{}")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises((StoreError, FileNotFoundError)), committed(tmp_path / "case"):
        remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [1])
    write_json(tmp_path / "a.json", [2])
    assert json.loads((tmp_path / "a.json").read_text()) == [2]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("content", [b"", b'{"a": ', b'{"a": "\xff"}', b"[1]", b"[" * 100_000])
def test_a_damaged_json_file_of_ours_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    assert read_json(path, do="delete it") == {"a": 1}
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json: cannot be used \(.*\); delete it$"):
        read_json(path, do="delete it")
