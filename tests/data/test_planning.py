"""Plans: nnU-Net's printed figures (SegRap2023's plans, MultiTalent's poster), and its rules on synthetic fingerprints."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segsweep.data.fingerprint import CT_WORD, CaseFingerprint, make_plan, patch_and_batch, read_fingerprints
from segsweep.data.planning import Normalisation, plan_from_json
from segsweep.data.store import open_store
from segsweep.data.structures import LabelSet
from segsweep.data.topology import Topology, divisible, divisor, feature_map_elements, features, topology
from segsweep.errors import InputError, ResourceError

SEGRAP = (3.0, 0.542, 0.542)
LIVER = LabelSet(structures=("Liver", "Tumour"))


def case(case_id="a", *, shape=(100, 200, 200), spacing=(1.0, 1.0, 1.0), intensities=None, **changed):
    values = np.array([[0.0, 50.0, 100.0]]) if intensities is None else np.asarray(intensities)
    return CaseFingerprint(
        case_id=case_id,
        shape=shape,
        spacing=spacing,
        intensities=values,
        annotated=changed.get("annotated", ("Liver", "Tumour")),
        atoms=changed.get("atoms", ((), (0,), (1,))),
    )


def plan(*cases, **changed):
    return make_plan(list(cases), **{"channels": ("CT",), "labels": LIVER, **changed})


@pytest.mark.parametrize(
    ("patch_size", "strides"),
    [
        ((28, 256, 256), [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)]),
        ((32, 320, 256), [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)]),
        ((28, 224, 224), [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)]),
    ],
)
def test_topology_of_segrap(patch_size, strides):
    found = topology(patch_size, spacing=SEGRAP)
    assert found.strides == tuple(strides)
    assert found.kernels == ((1, 3, 3), (1, 3, 3), *[(3, 3, 3)] * (len(strides) - 2))


def test_topology_halves_one_axis_alone_only_from_twelve_voxels():
    assert len(topology((4, 4, 11), spacing=(1.0, 1.0, 1.0)).strides) == 1
    assert topology((4, 4, 12), spacing=(1.0, 1.0, 1.0)).strides == ((1, 1, 1), (1, 1, 2))


def test_topology_stops_at_the_deepest_level():
    assert len(topology((512, 512, 512), spacing=(1.0, 1.0, 1.0)).strides) == 7
    assert len(topology((512, 512, 512), spacing=(1.0, 1.0, 1.0), deepest=3).strides) == 3


def test_divisor():
    levels = topology((28, 256, 256), spacing=SEGRAP)
    assert divisor(levels) == (4, 64, 64)
    assert divisible((26, 256, 250), topology=levels) == (28, 256, 256)


@pytest.mark.parametrize(
    ("patch_size", "outputs", "millions"),
    [
        ((28, 256, 256), 3, 543),
        ((28, 256, 256), 55, 669),
        ((28, 224, 224), 55, 512),
        ((32, 320, 256), 3, 775),
        ((32, 320, 256), 55, 955),
    ],
)
def test_feature_map_elements_of_segrap(patch_size, outputs, millions):
    levels = topology(patch_size, spacing=SEGRAP)
    assert round(feature_map_elements(patch_size, topology=levels, outputs=outputs) / 1e6) == millions


@pytest.mark.parametrize(
    ("patch_size", "spacing", "outputs", "elements"),
    [
        ((28, 256, 256), SEGRAP, 3, 792_866_368),
        ((28, 224, 224), SEGRAP, 55, 702_989_476),
        ((128, 128, 128), (1.0, 1.0, 1.0), 8, 570_302_464),
        ((64, 192, 160), (2.5, 0.8, 0.8), 14, 754_181_760),
    ],
)
def test_feature_map_elements_of_the_residual_unet(patch_size, spacing, outputs, elements):
    """As nnU-Net's own network counts them (dynamic-network-architectures 0.4.4)."""
    levels = topology(patch_size, spacing=spacing)
    assert feature_map_elements(patch_size, topology=levels, outputs=outputs, residual=True) == elements


def test_feature_map_elements_by_hand():
    levels = Topology(strides=((1, 1, 1), (2, 2, 2)), kernels=((3, 3, 3), (3, 3, 3)))
    # Level 0: encoder 2, decoder 2, transposed convolution 1, each 4 channels, and 3 outputs; level 1: 2 of 6 channels.
    expected = 8**3 * (5 * 4 + 3) + 4**3 * 2 * 6
    assert feature_map_elements((8, 8, 8), topology=levels, outputs=3, base=4, largest=6) == expected


def test_features_double_up_to_the_largest():
    assert features(topology((28, 256, 256), spacing=SEGRAP)) == (32, 64, 128, 256, 320, 320, 320)


@given(
    st.tuples(*[st.integers(1, 200)] * 3),
    st.tuples(*[st.floats(0.3, 8.0)] * 3),
)
def test_topology_leaves_at_least_four_voxels_along_halved_axes(patch_size, spacing):
    levels = topology(patch_size, spacing=spacing)
    grown = divisible(patch_size, topology=levels)
    for size, step in zip(grown, divisor(levels), strict=True):
        assert step == 1 or size // step >= 4
    assert len(levels.strides) == len(levels.kernels)


@pytest.mark.parametrize(("structures", "patch_size"), [(2, (28, 256, 256)), (54, (28, 224, 224))])
def test_plan_of_segrap_is_the_official_one(structures, patch_size):
    labels = LabelSet(structures=tuple(f"s{index}" for index in range(structures)))
    atoms = ((), *((index,) for index in range(structures)))
    cases = [
        case(f"{i}", shape=(115, 944, 944), spacing=SEGRAP, annotated=labels.structures, atoms=atoms)
        for i in range(120)
    ]
    found = plan(*cases, labels=labels)
    assert found.spacing == SEGRAP
    assert found.patch_size == patch_size
    assert found.batch_size == 2
    assert found.median_shape == (115, 944, 944)


@pytest.mark.parametrize(
    ("planner", "head_and_neck", "abdomen", "isotropic"),
    [
        ("plain", (28, 256, 256), (48, 192, 192), (128, 128, 128)),
        ("resenc_m", (28, 224, 224), (48, 192, 192), (128, 128, 128)),
        ("resenc_l", (40, 320, 320), (64, 320, 256), (160, 224, 192)),
        ("resenc_xl", (48, 448, 384), (80, 320, 320), (192, 256, 256)),
    ],
)
def test_patches_are_those_of_nnunets_planners(planner, head_and_neck, abdomen, isotropic):
    """As nnU-Net 2.8.1 plans these data sets; its batch is 2 in all of them."""
    for expected, spacing, shape, outputs, number in (
        (head_and_neck, SEGRAP, (115, 944, 944), 3, 120),
        (abdomen, (2.5, 0.8, 0.8), (120, 512, 512), 14, 50),
        (isotropic, (1.0, 1.0, 1.0), (250, 300, 300), 8, 20),
    ):
        labels = LabelSet(structures=tuple(f"s{index}" for index in range(outputs - 1)))
        atoms = ((), *((index,) for index in range(outputs - 1)))
        cases = [case(shape=shape, spacing=spacing, annotated=labels.structures, atoms=atoms)] * number
        found = plan(*cases, labels=labels, planner=planner)
        assert (found.patch_size, found.batch_size) == (expected, 2)


def test_an_unknown_planner_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="no 'resenc' among planners"):
        plan(case(), planner="resenc")


def test_plan_survives_json():
    found = plan(case())
    assert plan_from_json(json.loads(json.dumps(found.to_json()))) == found


def test_spacing_is_the_median_along_each_axis():
    cases = [case(spacing=(mm, 1.0, 2 * mm)) for mm in (1.0, 1.5, 4.0)]
    assert plan(*cases).spacing == (1.5, 1.0, 3.0)


@pytest.mark.parametrize("worst", [0, 1, 2])
def test_anisotropic_axis_takes_the_tenth_percentile_wherever_it_lies(worst):
    def turned(thick, *, slices):
        spacing, shape = [1.0] * 3, [512] * 3
        spacing[worst], shape[worst] = thick, slices
        return case(spacing=tuple(spacing), shape=tuple(shape))

    few = [turned(mm, slices=60) for mm in np.linspace(2.0, 7.0, 11)]
    expected = [1.0] * 3
    expected[worst] = 2.5
    assert plan(*few).spacing == pytest.approx(expected)
    many = [turned(mm, slices=400) for mm in np.linspace(2.0, 7.0, 11)]
    expected[worst] = 4.5
    assert plan(*many).spacing == pytest.approx(expected)


def test_anisotropic_axis_gets_no_finer_than_the_others():
    cases = [case(spacing=(mm, 1.0, 1.0), shape=(60, 512, 512)) for mm in (0.5, 0.5, 5.0, 5.0, 5.0, 5.0)]
    assert plan(*cases).spacing == pytest.approx((1.0 + 1e-5, 1.0, 1.0), abs=1e-9)


def test_small_scans_bound_the_patch():
    found = plan(*[case(shape=(36, 50, 35)) for _ in range(200)])
    assert found.median_shape == (36, 50, 35)
    assert found.patch_size == (40, 56, 40)
    assert found.batch_size > 2


def test_batch_covers_at_most_a_twentieth_of_the_dataset():
    shape = (32, 32, 32)
    assert plan(*[case(shape=shape) for _ in range(100)]).batch_size == 5
    assert plan(case(shape=shape)).batch_size == 2


def test_more_memory_gives_a_larger_patch_and_too_little_is_refused():
    cases = [case(shape=(300, 512, 512)) for _ in range(20)]
    small, large = plan(*cases, memory_gb=8.0), plan(*cases, memory_gb=24.0)
    assert np.prod(large.patch_size) > 2 * np.prod(small.patch_size)
    with pytest.raises(ResourceError, match="give more"):
        plan(*cases, memory_gb=1e-6)


def test_no_cases_is_refused():
    with pytest.raises(InputError, match="no training cases"):
        plan()


@pytest.mark.parametrize("name", ["CT", "ct", "non_contrast_CT", "contrast_CT", "CT 1", "PET/CT", "ceCT"])
def test_names_with_the_word_ct_are_ct(name):
    assert CT_WORD.search(name)


@pytest.mark.parametrize("name", ["SPECT", "MR", "active", "CTV", "T1", "fractions"])
def test_other_names_are_not_ct(name):
    assert not CT_WORD.search(name)


def test_ct_is_normalised_from_foreground_only():
    inside = np.stack([np.linspace(0.0, 1000.0, 1001), np.linspace(5.0, 6.0, 1001)])
    outside = np.full((2, 5000), -500.0)
    first, second = plan(
        case(intensities=inside), case(intensities=outside, annotated=(), atoms=((),)), channels=("CT", "PET")
    ).normalisation
    assert first.scheme == "ct"
    assert (first.low, first.high, first.mean) == pytest.approx((5.0, 995.0, 500.0))
    assert first.deviation == pytest.approx(inside[0].std())
    assert second == Normalisation(scheme="z-score")


def test_without_foreground_tissue_anywhere_is_used():
    values = np.array([[-1000, -950, -100, 100]], dtype=np.int16)
    found = plan(case(intensities=values, annotated=(), atoms=((),))).normalisation[0]
    assert (found.scheme, found.mean) == ("ct", 0.0)
    empty = case(intensities=np.zeros((1, 0)), annotated=(), atoms=((),))
    assert plan(empty).normalisation[0].scheme == "z-score"


@pytest.mark.parametrize(
    ("changed", "head"),
    [
        ({}, "softmax"),
        ({"annotated": (), "atoms": ((),)}, "softmax"),
        ({"annotated": ("Liver",)}, "sigmoid"),
        ({"atoms": ((), (0,), (0, 1))}, "sigmoid"),
    ],
)
def test_head(changed, head):
    assert plan(case("a"), case("b", **changed)).head == head


@pytest.mark.parametrize("planner", ["plain", "resenc_m", "resenc_xl"])
def test_a_store_is_planned_anew_for_another_network(tiny_store, planner):
    label = np.zeros((40, 60, 60), np.uint8)
    label[10:20, 10:20, 10:20] = 1
    folder = tiny_store("a", labels=LabelSet(structures=("Liver",)), cases={"one": label, "two": label})
    store = open_store(folder)

    def planned(name):
        return make_plan(read_fingerprints(store), channels=store.channels, labels=store.table.labels, planner=name)

    (folder / "plan.json").write_text(json.dumps(planned("plain").to_json()))
    expected = planned(planner)
    assert patch_and_batch(store, planner=planner) == (expected.patch_size, expected.batch_size)
    with pytest.raises(InputError, match="resenc_xxl"):
        patch_and_batch(store, planner="resenc_xxl")
