"""A head and neck made of ellipsoids, as CT and contrast CT in HU: a data set of some MB for demos and tests, made on the spot.

Like real collections it has overlapping structures, left/right pairs that only position tells apart, a tumour that shows in one
channel, files in several orientations, and cases that are annotated in part or not at all. The shapes and numbers are our own.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from segsweep.data.case import CASE_ID, CaseSource, LabelFile
from segsweep.data.geometry import Geometry, Reorientation
from segsweep.data.layouts import read_json
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError
from segsweep.inference.writers import write_image, write_label_map

LABELS = LabelSet(
    structures=(
        *("Brain", "BrainStem", "SpinalCord", "Eye_L", "Eye_R", "Parotid_L", "Parotid_R"),
        *("Submandibular_L", "Submandibular_R", "Mandible", "OralCavity", "Larynx", "Trachea", "GTVp"),
    ),
    pairs=(("Eye_L", "Eye_R"), ("Parotid_L", "Parotid_R"), ("Submandibular_L", "Submandibular_R")),
)
CHANNELS = ("CT", "contrast CT")
Vector = tuple[float, float, float]

_TUMOUR = "GTVp"
_ORGANS = LABELS.structures[:-1]
_PARTLY = (("Parotid_L", "Parotid_R", "Mandible", _TUMOUR), _ORGANS)
_NOISE_HU = 12.0
_EVERYWHERE = ((-inf, inf), (-inf, inf), (-inf, inf))
# How files are stored, by turns. A letter is the direction in which the x, y, z axis grows; `axes` and `flips` count (z, y, x).
_STORED = (
    ("LPS", Reorientation(axes=(0, 1, 2), flips=(False, False, False))),
    ("RAS", Reorientation(axes=(0, 1, 2), flips=(False, True, True))),
    ("PIR", Reorientation(axes=(1, 2, 0), flips=(True, False, True))),
    ("oblique", Reorientation(axes=(0, 1, 2), flips=(False, False, False))),
    ("LAS", Reorientation(axes=(0, 1, 2), flips=(False, True, False))),
)


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """An ellipsoid (or, with an infinite radius, a cylinder), cut to a box. All (x, y, z) in mm of the model, LPS."""

    centre: Vector
    radii: Vector
    box: tuple[tuple[float, float], ...] = _EVERYWHERE


@dataclass(frozen=True, kw_only=True)
class _Tissue:
    """What is painted where; later tissues replace earlier ones. HU without and with contrast agent."""

    hu: float
    enhanced: float
    shapes: tuple[_Shape, ...]
    structure: str = ""
    moves: bool = False


def _column(x: float, y: float, radius: float, *, low: float = -inf, high: float = inf) -> _Shape:
    return _Shape(centre=(x, y, 0.0), radii=(radius, radius, inf), box=(*_EVERYWHERE[:2], (low, high)))


def _both(name: str, *, hu: float, enhanced: float, centre: Vector, radii: Vector) -> tuple[_Tissue, _Tissue]:
    """The organ on the left (x grows to the left) and on the right."""
    left = _Shape(centre=centre, radii=radii)
    right = _Shape(centre=(-centre[0], centre[1], centre[2]), radii=radii)
    return (
        _Tissue(hu=hu, enhanced=enhanced, structure=f"{name}_L", shapes=(left,), moves=True),
        _Tissue(hu=hu, enhanced=enhanced, structure=f"{name}_R", shapes=(right,), moves=True),
    )


def _body(inset: float) -> tuple[_Shape, ...]:
    return (
        _Shape(centre=(0, 0, 25), radii=(54 - inset, 63 - inset, 48 - inset)),
        _Shape(centre=(0, -5, -5), radii=(54 - inset, 55 - inset, 40 - inset)),
        _Shape(centre=(0, 6, 0), radii=(38 - inset, 38 - inset, inf), box=(*_EVERYWHERE[:2], (-inf, 0))),
    )


_ANATOMY = (
    _Tissue(hu=10, enhanced=20, shapes=_body(0)),  # skin
    _Tissue(hu=-100, enhanced=-95, shapes=_body(2.5)),  # fat
    _Tissue(hu=55, enhanced=70, shapes=_body(7)),  # muscle
    _Tissue(hu=800, enhanced=810, shapes=(_Shape(centre=(0, 4, 33), radii=(47, 56, 38)),)),  # skull
    _Tissue(hu=35, enhanced=42, structure="Brain", shapes=(_Shape(centre=(0, 4, 33), radii=(42, 51, 33)),)),
    _Tissue(hu=420, enhanced=430, shapes=(_Shape(centre=(0, 22, 0), radii=(17, 16, inf), box=(*_EVERYWHERE[:2], (-inf, -3))),)),
    _Tissue(hu=0, enhanced=0, shapes=(_column(0, 25, 9, high=-1),)),  # spinal canal
    _Tissue(hu=75, enhanced=80, structure="SpinalCord", shapes=(_column(0, 25, 5.5, high=-2),)),
    _Tissue(hu=80, enhanced=90, structure="BrainStem", shapes=(_Shape(centre=(0, 20, 11), radii=(10, 10, 14)),)),
    _Tissue(hu=-95, enhanced=-90, shapes=tuple(_Shape(centre=(x, -43, 15), radii=(14, 14, 13)) for x in (-21, 21))),  # orbits
    *_both("Eye", hu=15, enhanced=20, centre=(21, -45, 15), radii=(10, 10, 10)),
    _Tissue(
        hu=950,
        enhanced=955,
        structure="Mandible",
        moves=True,
        shapes=(
            _Shape(centre=(0, -8, 0), radii=(41, 42, inf), box=((-inf, inf), (-inf, 0), (-35, -18))),
        ),
    ),
    _Tissue(hu=55, enhanced=70, shapes=(_Shape(centre=(0, -8, 0), radii=(34, 34, inf), box=((-inf, inf), (-inf, 2), (-38, -15))),)),
    _Tissue(
        hu=105, enhanced=120, structure="OralCavity", moves=True, shapes=(_Shape(centre=(0, -20, -19), radii=(23, 19, 15)),)
    ),
    *_both("Parotid", hu=-35, enhanced=10, centre=(39, 8, -6), radii=(9, 13, 16)),
    *_both("Submandibular", hu=-20, enhanced=60, centre=(23, 3, -32), radii=(7.5, 8.5, 8.5)),
    _Tissue(hu=60, enhanced=260, shapes=tuple(_column(x, 14, 4, high=-4) for x in (-23, 23))),  # vessels
    _Tissue(hu=150, enhanced=175, structure="Larynx", moves=True, shapes=(_Shape(centre=(0, -12, -39), radii=(13, 11, 9)),)),
    _Tissue(hu=-950, enhanced=-950, shapes=(_column(0, -6, 5, low=-44, high=-2),)),  # pharynx
    _Tissue(hu=-950, enhanced=-950, structure="Trachea", shapes=(_column(0, -8, 7.5, high=-44),)),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Patient:
    """A canonical grid, and the model's place in it: world = centre + scale * model, both (x, y, z) LPS in mm."""

    geometry: Geometry
    centre: NDArray
    scale: NDArray


@dataclass(frozen=True, kw_only=True)
class _Painting:
    """A patient's channels (c, z, y, x) in HU without noise, values of the organ map (z, y, x), and the tumour."""

    channels: NDArray
    organs: NDArray
    tumour: NDArray


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """The grid's box that holds a shape, and the voxels of the box inside the shape."""

    region: tuple[slice, slice, slice]
    inside: NDArray[np.bool_]


def make(raw: Path, *, cases: int = 16, seed: int = 0, progress: Callable[[str, int, int], None] | None = None) -> None:
    """Writes `raw/images/CASE_0000.nii.gz` and `_0001` (channels), `raw/organs/CASE.nii.gz` and `raw/tumours/CASE.nii.gz`
    (what is annotated), and last `raw/cases.json`. A case depends on the seed and its number only.

    Of 16 cases the last 4 are for validation; before them come 2 without annotation and 2 annotated in part.
    """
    if cases < 1:
        raise InputError(f"cases={cases} cannot be made; expected at least 1; ask for more")
    entries = []
    for number in range(cases):
        case_id = f"phantom_{number:03d}"
        annotated = _annotated(number, cases=cases)
        _make_case(raw, case_id=case_id, annotated=annotated, number=number, seed=seed)
        split = "validation" if number >= cases - cases // 4 else "train"
        entries.append({"id": case_id, "split": split, "annotated": annotated})
        if progress:
            progress("phantom", number + 1, cases)
    unfinished = raw / ".cases.json"
    unfinished.write_text(json.dumps({"seed": seed, "cases": entries}, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(raw / "cases.json")


def cases(raw: Path) -> list[CaseSource]:
    """The cases that `make` wrote. Raises InputError for a cases.json that cannot be used."""
    content = read_json(raw / "cases.json", what="the list of cases that the phantom's make writes")
    try:
        entries = content["cases"]
        sources = [
            _source(raw, case_id=entry["id"], split=entry["split"], annotated=entry["annotated"]) for entry in entries
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"cases.json is damaged ({type(error).__name__}: {error}); expected a list of cases; make the phantom again"
        ) from None
    if not sources:
        raise InputError("cases.json lists no cases; expected at least one; make the phantom again")
    return sources


def _source(raw: Path, *, case_id: str, split: str, annotated: list[str]) -> CaseSource:
    if not CASE_ID.fullmatch(case_id) or split not in ("train", "validation"):
        raise InputError(f"cases.json: case {case_id!r} of split {split!r} is no phantom case; make the phantom again")
    if not set(annotated) <= set(LABELS.structures):
        raise InputError(f"cases.json: {case_id} names structures {annotated}; expected some of {LABELS.structures}")
    labels = []
    for folder, values in (("organs", _organ_values()), ("tumours", {1: (_TUMOUR,)})):
        known = {value: tuple(name for name in names if name in annotated) for value, names in values.items()}
        known = {value: names for value, names in known.items() if names}
        if known:
            labels.append(LabelFile(path=raw / folder / f"{case_id}.nii.gz", values=known))
    images = tuple(raw / "images" / f"{case_id}_{channel:04d}.nii.gz" for channel in range(len(CHANNELS)))
    return CaseSource(case_id=case_id, images=images, labels=tuple(labels), annotated=tuple(annotated), split=split)


def _organ_values() -> dict[int, tuple[str, ...]]:
    """Value of the organ map -> structures. The brain stem is part of the brain, as in SegRap2023."""
    return {value: ("Brain", name) if name == "BrainStem" else (name,) for value, name in enumerate(_ORGANS, start=1)}


def _annotated(number: int, *, cases: int) -> tuple[str, ...]:
    place = number - (cases - cases // 4 - 2 * (cases // 8))
    if 0 <= place < cases // 8:
        return _PARTLY[place % 2]
    return () if cases // 8 <= place < 2 * (cases // 8) else LABELS.structures


def _make_case(raw: Path, *, case_id: str, annotated: tuple[str, ...], number: int, seed: int) -> None:
    rng = np.random.default_rng([seed, number])
    name, turn = _STORED[number % len(_STORED)]
    patient = _patient(rng, oblique=name == "oblique")
    painting = _paint(patient, rng=rng)
    stored = _stored(patient.geometry, turn=turn)
    for channel, clean in enumerate(painting.channels):
        noise = rng.normal(scale=_NOISE_HU, size=clean.shape)
        # Voxels average over their borders; 0.5 voxels of blur stand for that.
        image = np.rint(np.clip(gaussian_filter(clean, 0.5) + noise, -1024, 3071)).astype(np.int16)
        write_image(turn.invert(image), geometry=stored, path=raw / "images" / f"{case_id}_{channel:04d}.nii.gz")
    wanted = [0, *(value for value, names in _organ_values().items() if set(names) & set(annotated))]
    if len(wanted) > 1:
        organs = np.where(np.isin(painting.organs, wanted), painting.organs, 0)
        write_label_map(turn.invert(organs), geometry=stored, path=raw / "organs" / f"{case_id}.nii.gz")
    if _TUMOUR in annotated:
        write_label_map(turn.invert(painting.tumour), geometry=stored, path=raw / "tumours" / f"{case_id}.nii.gz")


def _patient(rng: np.random.Generator, *, oblique: bool) -> _Patient:
    """A random field of view, about 112 to 138 mm high, over a patient of random size and place."""
    spacing = (rng.uniform(2.5, 3.5), rng.uniform(1.8, 2.4))
    height = int(np.clip(round(rng.uniform(112, 138) / spacing[0]), 36, 48))
    shape = (height, *(int(np.clip(round(rng.uniform(140, 190) / spacing[1]), 72, 96)) for _ in range(2)))
    direction = np.eye(3)
    if oblique:
        tilt, turn = rng.choice([-1, 1], size=2) * np.radians(rng.uniform(3, 8, size=2))
        about_x = [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]
        about_z = [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
        direction = np.array(about_z) @ np.array(about_x)
    grid = Geometry(
        shape=(shape[0], shape[1], shape[2]),
        spacing=(spacing[0], spacing[1], spacing[1]),
        origin=(0.0, 0.0, 0.0),
        direction=tuple(direction.ravel().tolist()),
    )
    centre = rng.uniform(-60, 60, size=3)
    middle = grid.position(((shape[0] - 1) / 2, (shape[1] - 1) / 2, (shape[2] - 1) / 2))
    x, y, z = (centre + rng.uniform(-4, 4, size=3) - middle).tolist()
    geometry = replace(grid, origin=(x, y, z))
    return _Patient(geometry=geometry, centre=centre, scale=rng.uniform(0.92, 1.05, size=3))


def _paint(patient: _Patient, *, rng: np.random.Generator) -> _Painting:
    shape = patient.geometry.shape
    channels = np.full((len(CHANNELS), *shape), -1000, dtype=np.float32)
    organs = np.zeros(shape, dtype=np.uint8)
    value_of = {name: value for value, name in enumerate(_ORGANS, start=1)}
    for tissue in _ANATOMY:
        shift = rng.normal(scale=1.2, size=3) if tissue.moves else np.zeros(3)
        growth = rng.uniform(0.94, 1.06) if tissue.moves else 1.0
        for part in tissue.shapes:
            cut = _cut(part, patient=patient, shift=shift, growth=growth)
            organs[cut.region][cut.inside] = value_of.get(tissue.structure, 0)
            channels[0][cut.region][cut.inside] = tissue.hu
            channels[1][cut.region][cut.inside] = tissue.enhanced
    tumour = _tumour(patient, rng=rng)
    # Tumours spare air, bone and paired organs: whatever overlaps on the left could then overlap on the right.
    paired = [value_of[name] for pair in LABELS.pairs for name in pair]
    tumour &= (channels[0] > -200) & (channels[0] < 300) & ~np.isin(organs, paired)
    channels[0][tumour] += 15
    channels[1][tumour] += 130
    return _Painting(channels=channels, organs=organs, tumour=tumour)


def _tumour(patient: _Patient, *, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A knobbly blob beside the pharynx, on either side, that grows into the oral cavity."""
    mask = np.zeros(patient.geometry.shape, dtype=bool)
    seat = np.array([rng.choice([-1, 1]) * rng.uniform(8, 13), rng.uniform(-14, -8), rng.uniform(-22, -14)])
    for _ in range(6):
        centre = seat + rng.normal(scale=3.5, size=3)
        radii = rng.uniform(5, 9, size=3)
        knob = _Shape(centre=(centre[0], centre[1], centre[2]), radii=(radii[0], radii[1], radii[2]))
        cut = _cut(knob, patient=patient, shift=np.zeros(3), growth=1.0)
        mask[cut.region] |= cut.inside
    return mask


def _cut(shape: _Shape, *, patient: _Patient, shift: NDArray, growth: float) -> _Cut:
    to_model = patient.geometry.matrix / patient.scale[:, None]
    offset = (np.asarray(patient.geometry.origin) - patient.centre) / patient.scale - shift
    centre, radii = np.asarray(shape.centre), np.asarray(shape.radii) * growth
    low = np.maximum(np.maximum(centre - radii, [side[0] for side in shape.box]), -300)
    high = np.minimum(np.minimum(centre + radii, [side[1] for side in shape.box]), 300)
    to_index = np.linalg.inv(to_model)
    middle = to_index @ ((low + high) / 2 - offset)
    reach = np.abs(to_index) @ ((high - low) / 2)
    first = np.clip(np.floor(middle - reach), 0, patient.geometry.shape).astype(int)
    last = np.clip(np.ceil(middle + reach) + 1, 0, patient.geometry.shape).astype(int)
    steps = np.ogrid[tuple(slice(a, b) for a, b in zip(first, last, strict=True))]
    distance, inside = np.float32(0), np.True_
    for axis in range(3):
        place = sum(np.float32(to_model[axis, i]) * steps[i] for i in range(3)) + np.float32(offset[axis])
        distance = distance + ((place - centre[axis]) / radii[axis]) ** 2
        inside = inside & (place >= low[axis]) & (place <= high[axis])
    region = (slice(first[0], last[0]), slice(first[1], last[1]), slice(first[2], last[2]))
    return _Cut(region=region, inside=np.asarray(inside & (distance <= 1)))


def _stored(canonical: Geometry, *, turn: Reorientation) -> Geometry:
    """The grid of a file whose `turn` leads to the canonical one: the same voxels at the same places."""
    columns = np.asarray(canonical.direction, dtype=float).reshape(3, 3)[:, ::-1] * np.where(turn.flips, -1.0, 1.0)
    corner = [size - 1 if flip else 0 for size, flip in zip(canonical.shape, turn.flips, strict=True)]
    source = [turn.axes.index(axis) for axis in range(3)]
    shape, spacing = [canonical.shape[i] for i in source], [canonical.spacing[i] for i in source]
    x, y, z = canonical.position((corner[0], corner[1], corner[2])).tolist()
    return Geometry(
        shape=(shape[0], shape[1], shape[2]),
        spacing=(spacing[0], spacing[1], spacing[2]),
        origin=(x, y, z),
        direction=tuple(columns[:, source][:, ::-1].ravel().tolist()),
    )
