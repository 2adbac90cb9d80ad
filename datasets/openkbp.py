"""OpenKBP head and neck: 34 radiotherapy CTs with 7 organs at risk, contoured for treatment.

From the OpenKBP challenge (Babier et al., Medical Physics 2021, doi:10.1002/mp.14845; data at github.com/ababier/open-kbp, MIT
licence), whose 128^3 grids of 4-5 x 4-5 x 2.5-3 mm are kept. `raw` holds `images/ID.nii.gz` (int16 HU), `labels/ID.nii.gz` and
`cases.json` (per case `id` and `upstream_split`). Its planning targets are no anatomy that a CT shows, and are left out.
"""

from pathlib import Path

from segsweep.data.case import CASE_ID, CaseSource, LabelFile
from segsweep.data.layouts import read_json
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError

LABELS = LabelSet(
    structures=("Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Esophagus", "Larynx", "Mandible"),
    pairs=(("LeftParotid", "RightParotid"),),
)
CHANNELS = ("CT",)


def cases(raw: Path) -> list[CaseSource]:
    """The cases in `raw/cases.json`, all fully annotated. Raises InputError for a cases.json that cannot be used."""
    content = read_json(raw / "cases.json", what="the OpenKBP folder with images/, labels/ and cases.json")
    try:
        values = {int(value): (str(name),) for name, value in content["labels"].items()}
        rows = [(str(entry["id"]), str(entry["upstream_split"])) for entry in content["cases"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"cases.json cannot be used ({type(error).__name__}: {error}); "
            "expected 'labels' (name: value) and 'cases' (id, upstream_split)"
        ) from None
    named = sorted(name for names in values.values() for name in names)
    if named != sorted(LABELS.structures):
        raise InputError(f"cases.json labels {named}; expected {sorted(LABELS.structures)}")
    if not rows:
        raise InputError("cases.json lists no cases; expected the OpenKBP folder; copy it again")
    return [_source(raw, case_id=case_id, split=split, values=values) for case_id, split in rows]


def _source(raw: Path, *, case_id: str, split: str, values: dict[int, tuple[str, ...]]) -> CaseSource:
    if not CASE_ID.fullmatch(case_id):
        raise InputError(f"cases.json: {case_id!r} is no case id; expected letters, digits, '.', '_' and '-'")
    if split not in ("train", "validation"):
        raise InputError(
            f"{case_id}: upstream_split is {split!r}; expected 'train' or 'validation'; correct cases.json"
        )
    image, label = (raw / folder / f"{case_id}.nii.gz" for folder in ("images", "labels"))
    return CaseSource(
        case_id=case_id,
        images=(image,),
        labels=(LabelFile(path=label, values=values),),
        annotated=LABELS.structures,
        split="validation" if split == "validation" else "train",
    )
