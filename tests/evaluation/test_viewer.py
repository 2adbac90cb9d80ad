"""What the viewer's volumes hold. (`test_report.py` looks at them in a browser.)"""

import base64
import gzip
import math

import numpy as np
import pytest

from segsweep.data.geometry import Geometry
from segsweep.evaluation import viewer
from segsweep.evaluation.sources import Labelled
from segsweep.evaluation.viewer import LEVELS, MOST_VOXELS, Viewed, pack, render, thinning


def labelled(label, *, spacing=(3.0, 1.0, 1.0), values=None, ignored=None):
    grid = Geometry(shape=label.shape, spacing=spacing, origin=(0, 0, 0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1))
    values = values or {"liver": (1, 3), "lesion": (3,), "spleen": (2,)}
    return Labelled(
        case="a</script>", label=label, geometry=grid, values=values, largest=int(label.max()), ignored=ignored
    )


def parts(packed):
    data = np.frombuffer(gzip.decompress(base64.b64decode(packed.volume)), np.uint8)
    return data.reshape(3, *packed.about["shape"])


def test_a_case_is_cut_to_its_labels_and_keeps_their_meaning():
    label = np.zeros((60, 200, 200), np.uint16)
    label[30, 100, 90:93] = 300, 1, 3
    label[30, 101, 90] = 2
    image = np.zeros(label.shape, np.int16)
    image[30, 100, 90:93] = 41, -1000, 3000
    found = labelled(np.where(label == 2, 2, 0).astype(np.uint8))
    packed = pack(Viewed(truth=labelled(label, ignored=300), found=found, image=image, structure="liver"))
    assert packed is not None
    about, (grey, reference, prediction) = packed.about, parts(packed)
    assert about["shape"] == (27, 82, 83), "with 40 mm around"
    assert (about["spacing"], about["hu"]) == ([3.0, 1.0, 1.0], True)
    shown = [about["reference"][value] for value in reference[13, 40, 39:43]]
    assert shown == [[], [], ["liver"], ["liver", "lesion"]], "what is ignored belongs to nothing"
    assert about["reference"][reference[13, 41, 40]] == ["spleen"] == about["prediction"][prediction[13, 41, 40]]
    assert not prediction[13, 40].any()
    assert LEVELS[grey[13, 40, 40]] == pytest.approx(41, abs=1.5)
    assert [LEVELS[grey[13, 40, column]] for column in (41, 42)] == [pytest.approx(-1000, abs=10), 2000]


def test_large_cases_are_thinned_by_whole_voxels_and_say_so():
    assert thinning((100, 200, 200), spacing=(3.0, 1.0, 1.0)) == (1, 1, 1)
    for shape, spacing, steps in (
        ((130, 512, 512), (3.0, 0.9, 0.9), (1, 3, 3)),
        ((700, 300, 300), (0.5, 0.9, 0.9), (4, 2, 2)),
    ):
        assert thinning(shape, spacing=spacing) == steps
        assert math.prod(math.ceil(n / step) for n, step in zip(shape, steps, strict=True)) <= MOST_VOXELS


def test_thinning_takes_the_same_voxels_of_image_and_labels(monkeypatch):
    monkeypatch.setattr(viewer, "MOST_VOXELS", 300)
    generator = np.random.default_rng(0)
    label = generator.integers(0, 4, (10, 20, 20)).astype(np.uint8)
    image = label.astype(np.int16) * 30
    packed = pack(Viewed(truth=labelled(label), found=None, image=image, structure=""))
    assert packed is not None
    grey, reference, prediction = parts(packed)
    assert (packed.about["shape"], packed.about["spacing"]) == ((10, 5, 5), [3.0, 4.0, 4.0])
    np.testing.assert_array_equal(reference, label[:, 2::4, 2::4])
    np.testing.assert_allclose(LEVELS[grey], 30.0 * reference, atol=1.5)
    assert not prediction.any() and "One of every 1 × 4 × 4 voxels" in packed.about["note"]


def test_no_text_of_a_case_ends_its_script():
    packed = pack(Viewed(truth=labelled(np.ones((2, 3, 4), np.uint8)), found=None, image=None, structure="<"))
    assert packed is not None and packed.about["hu"] is False
    shown = render([packed])
    assert shown.count("</script>") == shown.count("<script") == 2
    assert render([]) == ""


def test_a_map_of_more_values_than_a_byte_is_not_shown():
    label = np.arange(1, 401, dtype=np.uint16).reshape(1, 20, 20)
    many = labelled(label, values={str(value): (value,) for value in range(1, 401)})
    assert pack(Viewed(truth=many, found=None, image=None, structure="1")) is None
