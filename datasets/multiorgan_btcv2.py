"""BTCV2, the multi-organ abdominal set: 90 CTs of BTCV (47) and NIH Pancreas-CT (43) with 8 organs contoured anew.

Labels from Gibson et al., IEEE TMI 2018, doi:10.1109/TMI.2018.2806309 (data: doi:10.5281/zenodo.1169361, licence stated there); scans
from their own sources, see `btcv_abdomen` and `nih_pancreas`. `raw` holds the unpacked `label_btcv_multiorgan/label0001.nii.gz` and
`label_tcia_multiorgan/label0001.nii.gz`, BTCV's `RawData/{Training,Testing}/img/img0001.nii.gz` and TCIA's
`Pancreas-CT/PANCREAS_0001/` (DICOM). The 8 organs are those of MultiTalent's task 46; the BTCV files also hold the right kidney,
vessels and adrenals, which the others do not, and which are read as background here. Organs may be incomplete outside the box that
the set's `cropping.csv` gives. PANCREAS_0025 was withdrawn, its label is passed over.
A case carries the group of the same scan in those two sets, so that no fold tests on a scan that another copy was trained on.
In the TCIA part the headers do not place the labels on the scans. MultiTalent's script gave the scans' voxels, as dicom2nifti writes
them (rows from the back, slices from the feet), the labels' headers: so the labels' rows are stated here to run against the DICOM's.
Other published code reads them unflipped, so it is the scan that decides: a case is refused when its labels then are no soft tissue
that stands out from its surroundings clearly more than under every other flip, and `raw/label_flip.json` states another flip,
{"flip": ""}. A header that fits is always taken.
"""

from pathlib import Path

from segsweep.data.case import CaseSource, Image, LabelFile
from segsweep.data.flips import stated_flip
from segsweep.data.layouts import demand_cases, one_each, scans
from segsweep.data.structures import LabelSet
from segsweep.errors import InputError
from segsweep.recipes import load

ORGANS = ("spleen", "left_kidney", "gallbladder", "esophagus", "liver", "stomach", "pancreas", "duodenum")
LABELS = LabelSet(structures=ORGANS)
CHANNELS = ("CT",)
FLIP = "y"

nih_pancreas = load("datasets", name="nih_pancreas")

_OTHERS: dict[int, tuple[str, ...]] = dict.fromkeys((2, 8, 9, 10, 12, 13), ())
_VALUES = _OTHERS | {value: (name,) for value, name in zip((1, 3, 4, 5, 6, 7, 11, 14), ORGANS, strict=True)}
_WITHDRAWN = "0025"


def cases(raw: Path) -> list[CaseSource]:
    """All labelled scans of both sources, annotated for training. Raises InputError for a scan that is there twice."""
    btcv, nih = _labels(raw, source="btcv"), _labels(raw, source="tcia")
    layout = "label_btcv_multiorgan/, label_tcia_multiorgan/, RawData/ and Pancreas-CT/ (multi-organ BTCV2)"
    demand_cases((*btcv, *nih), raw=raw, layout=layout)
    nih.pop(_WITHDRAWN, None)
    flip = stated_flip(raw, otherwise=FLIP)
    return [
        *(_source(label, case_id=f"btcv_{number}", image=_btcv(raw, number=number)) for number, label in btcv.items()),
        *(
            _source(label, case_id=f"nih_{number}", image=nih_pancreas.series(raw, number=number), flip=flip)
            for number, label in nih.items()
        ),
    ]


def _labels(raw: Path, *, source: str) -> dict[str, Path]:
    found = one_each(scans(raw, f"label_{source}_multiorgan/label*.nii.gz"))
    return {name.removeprefix("label"): label for name, label in found.items()}


def _source(label: Path, *, case_id: str, image: Image, flip: str | None = None) -> CaseSource:
    return CaseSource(
        case_id=case_id,
        images=(image,),
        labels=(LabelFile(path=label, values=_VALUES, flip=flip),),
        annotated=ORGANS,
        group=case_id,
    )


def _btcv(raw: Path, *, number: str) -> Path:
    found = scans(raw, f"RawData/*/img/img{number}.nii.gz")
    if len(found) > 1:
        raise InputError(
            f"btcv_{number}: RawData/*/img/ holds img{number}.nii.gz {len(found)} times; expected it once; "
            "copy BTCV's Training and Testing there"
        )
    return found[0] if found else raw / "RawData/Training/img" / f"img{number}.nii.gz"
