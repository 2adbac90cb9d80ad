"""Names from a manifest stay inside the folder, listings are in one order, and pairs come from spellings."""

import json
from pathlib import Path

import pytest

from segsweep.data.case import lies_below
from segsweep.data.layouts import channel_files, inside, one_each, pairs_of, read_json, scans
from segsweep.errors import InputError

HOSTILE = (
    *("../x.nii.gz", "a/../../x.nii.gz", "a/..", "..", "/etc/passwd", "//server/share/x", "/", "", "   "),
    *("C:/x.nii.gz", "c:x.nii.gz", "Z:\\x", "a\\..\\x", "..\\x", "\\\\server\\share", "a\\b"),
    *("a\0.nii.gz", "\0", "a\nb", "a\x1b[31m", "a\x7f", "x" * 5000, "a/" * 3000, "\udcff.nii.gz", "\u202egz.iin"),
    *("\u2025/x", "\uff0e\uff0e/x", "\uff0fetc/passwd", "a\uff3cb", "\u2024\u2024/x", "a/\ufe52\ufe52/x"),
    *(
        "./..",
        "./../x",
        "a/b/../../../x",
        "../",
        "../../../../../../etc/shadow",
        "imagesTr/../../x",
        ".//../x",
        "/..",
        "a/./../x",
    ),
    *(
        "//x",
        "///etc/passwd",
        "/proc/self/environ",
        "/dev/zero",
        "\\\\?\\C:\\x",
        "C:",
        "C:..",
        "d:/a/../x",
        "a\\",
        "\\",
    ),
    *(
        "a\r",
        "a\tb",
        "\x00/etc/passwd",
        "x.nii.gz\x00.png",
        "\x85",
        "\ufeffa",
        "a\u200b",
        "\u2066a",
        "\x08",
        "\x1b]0;t\x07",
    ),
    *(
        "\uff0e\uff0e",
        "\uff0f\uff0fx",
        "\u2025",
        "a/\uff0e\uff0e/\uff0e\uff0e/x",
        "\uff23\uff1a/x",
        "\uff3c\uff3cx",
        "\u3000",
    ),
    *(3, None, ["a"], {"a": 1}, True, 2.5),
)


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:24])
def test_a_hostile_name_is_refused_and_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the name") as caught:
        inside(tmp_path, name)
    message = str(caught.value)
    assert repr(name)[:60] in message and len(message) < 400 and "\n" not in message


@pytest.mark.parametrize("name", ("imagesTr/a.nii.gz", "./imagesTr/a.nii.gz", "a b.nii", "größe/ä.nii.gz", "..a/b"))
def test_an_honest_name_is_kept(name: str, tmp_path: Path) -> None:
    assert inside(tmp_path, name) == tmp_path / name


def test_links_may_not_leave_the_folder(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "images", outside):
        folder.mkdir(parents=True)
        (folder / "a.nii.gz").touch()
    (root / "images" / "b.nii.gz").symlink_to(root / "images" / "a.nii.gz")
    assert inside(root, "images/b.nii.gz").is_file()
    assert [path.name for path in scans(root, "images/*")] == ["a.nii.gz", "b.nii.gz"]
    (root / "images" / "c.nii.gz").symlink_to(outside / "a.nii.gz")
    (root / "loop").symlink_to(root / "loop")
    for name in ("images/c.nii.gz", "loop/x"):
        with pytest.raises(InputError, match=f"'{name}' leads out .* by a link; .*; copy the data"):
            inside(root, name)
    (root / "more").symlink_to(outside)
    listed = [*scans(root, "images/*"), *scans(root, "more/*"), root / "loop"]
    assert [lies_below(path, root=root) for path in listed] == [True, True, False, False, False]


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.nii").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert scans(tmp_path / "link", "*") == [tmp_path / "link" / "a.nii"]
    assert inside(tmp_path / "link", "a.nii").is_file()


def test_listing_is_sorted_and_passes_over_what_is_no_scan(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.mha", "._b.nii.gz", ".c.nii", "notes.txt", "sub/c.nrrd", ".cache/d.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "sub" / "gone.nii").symlink_to(tmp_path / "no_such_file.nii")
    assert [path.name for path in scans(tmp_path, "*")] == ["a.mha", "b.nii.gz"]
    assert [path.name for path in scans(tmp_path, "**/*")] == ["a.mha", "b.nii.gz", "c.nrrd", "gone.nii"]
    assert scans(tmp_path / "absent", "*") == []


def test_a_linked_folder_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    (tmp_path / "raw" / "a").mkdir(parents=True)
    (tmp_path / "raw" / "a" / "a.nii").touch()
    (tmp_path / "raw" / "inside").symlink_to(tmp_path / "raw" / "a")
    assert [path.name for path in scans(tmp_path / "raw", "**/*")] == ["a.nii"]
    (tmp_path / "raw" / "part two").symlink_to(tmp_path)
    with pytest.raises(
        InputError, match="part two is a link out of raw; expected the data itself in raw; copy it there"
    ):
        scans(tmp_path / "raw", "**/*")


def test_json_is_an_object_of_bounded_size_and_depth(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    with pytest.raises(InputError, match=r"no dataset\.json in .*expected labels and images"):
        read_json(path, what="labels and images")
    deep = {"a": [[1]]}
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(deep).encode())
    assert read_json(path, what="labels") == deep
    for content in (b"[]", b"3", b"{", b"\xff\xfe{}", b"[" * 100_000, b'{"a":' + b"[" * 40 + b"]" * 40 + b"}"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"dataset\.json cannot be used .*expected labels"):
            read_json(path, what="labels")
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="1099511627776 bytes"):
        read_json(path, what="labels")


def test_channels_by_number(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.nii.gz" for name in ("b_0001", "a_1_0000", "b_0000", "a_1_0001")]
    found = channel_files(paths, num_channels=2)
    assert {case_id: [path.name[-11:-7] for path in files] for case_id, files in found.items()} == {
        "b": ["0000", "0001"],
        "a_1": ["0000", "0001"],
    }
    third = channel_files(paths, num_channels=3)["a_1"]
    assert [path.name for path in third] == ["a_1_0000.nii.gz", "a_1_0001.nii.gz", "a_1_0002.nii.gz"]
    with pytest.raises(InputError, match=r"b: has channels \[0, 1\]; expected 0 to 0"):
        channel_files(paths, num_channels=1)
    with pytest.raises(InputError, match=r"x\.nii has no channel number"):
        channel_files([tmp_path / "x.nii"], num_channels=1)
    with pytest.raises(InputError, match=r"same channel"):
        channel_files([tmp_path / "x_0000.nii", tmp_path / "x_0000.mha"], num_channels=1)


def test_what_is_there_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "labelsTr" / "a.nii.gz"
    assert one_each([path]) == {"a": path}
    with pytest.raises(InputError, match=r"a is there twice, as labelsTr/a\.nii\.gz and other/a\.mha; expected"):
        one_each([path, tmp_path / "other" / "a.mha"])


@pytest.mark.parametrize(
    ("left", "right"),
    [
        *(("Parotid_L", "Parotid_R"), ("LeftParotid", "RightParotid"), ("left kidney", "right kidney"), ("LK", "RK")),
        *(("LAG", "RAG"), ("rib_left_1", "rib_right_1"), ("L_Eye", "R_Eye"), ("EyeL", "EyeR"), ("lung_l", "lung_r")),
        *(("Lens_L", "Lens_R"), ("LENS LEFT", "LENS RIGHT"), ("Parotid_Lt", "Parotid_Rt"), ("l_eye", "r_eye")),
    ],
)
def test_pairs_from_spellings(left: str, right: str) -> None:
    assert pairs_of((right, "Liver", left, "Brain")) == ((left, right),)


def test_what_is_no_pair() -> None:
    assert pairs_of(("Eye_L", "Lens_R", "Lung", "Rung", "vertebrae_L1", "vertebrae_T1", "cleft")) == ()


@pytest.mark.parametrize(
    "names",
    [
        *(("heart_ventricle_left", "heart_ventricle_right"), ("Atrium_L", "Atrium_R"), ("LV", "RV"), ("LA", "RA")),
        *(("left atrial appendage", "right atrial appendage"), ("LV_myo", "RV_myo"), ("LAA", "RAA")),
        *(("LeftVentricle", "RightVentricle"), ("A_LV", "A_RV")),
    ],
)
def test_chambers_of_the_heart_are_no_pair(names: tuple[str, str]) -> None:
    assert pairs_of((*names, "LVR", "RVR")) == (("LVR", "RVR"),)
