"""NIH Pancreas-CT: portal venous abdominal CTs of 80 people with a healthy pancreas, which is contoured.

From The Cancer Imaging Archive (Roth et al., doi:10.7937/K9/TCIA.2016.tNB1kqBU, CC BY 3.0). `raw` holds the DICOM download
`Pancreas-CT/PANCREAS_0001/<study>/<series>/*.dcm` and the unpacked `TCIA_pancreas_labels-02-05-2017/label0001.nii.gz` (1 pancreas).
Labels 25 and 70 have no scan any more (withdrawn duplicates); cases 7, 27, 32 and 45 are left out, because their labels do not fit their
scans, as in MultiTalent.
The label files have headers of their own that do not place them on the DICOM's grid. Published code reads their voxels in the order
of the scan's: column by column and row by row as the DICOM stores them (OrganSegRSTN, MC-Net and others, which pair image[row, column]
with label[column, row]), from the feet up (deedsBCV reverses the rows alone after dcm2niix, which itself reverses the rows alone). So
that is stated here, and a case is refused when its labels then are no soft tissue that stands out from its surroundings clearly more
than under every other flip. Should that refuse good cases, `raw/label_flip.json` states another flip, {"flip": "z"}. A header that fits
is always taken. This was tried on other abdominal scans: look at what is converted here.
The multi-organ set of `multiorgan_btcv2` labels 43 of these scans again: cases of both carry the same group.
"""

from pathlib import Path

from segsweep.data.case import CaseSource, LabelFile, Series
from segsweep.data.dicom import find_series
from segsweep.data.flips import stated_flip
from segsweep.data.layouts import demand_cases, inside
from segsweep.data.structures import LabelSet

LABELS = LabelSet(structures=("pancreas",))
CHANNELS = ("CT",)
MISFITS = ("0007", "0027", "0032", "0045")

FLIP = ""

_VALUES = {1: ("pancreas",)}
_LABEL_FOLDER = "TCIA_pancreas_labels-02-05-2017"


def cases(raw: Path) -> list[CaseSource]:
    """All cases but the misfits, annotated for training."""
    numbers = [
        path.name.removeprefix("PANCREAS_") for path in sorted(raw.glob("Pancreas-CT/PANCREAS_*")) if path.is_dir()
    ]
    demand_cases(numbers, raw=raw, layout=f"Pancreas-CT/PANCREAS_0001/ (DICOM) and {_LABEL_FOLDER}/label0001.nii.gz")
    flip = stated_flip(raw, otherwise=FLIP)
    return [_source(raw, number=number, flip=flip) for number in numbers if number not in MISFITS]


def series(raw: Path, *, number: str) -> Series:
    """The slices below `Pancreas-CT/PANCREAS_<number>/`; if they are none or of several series, reading them says so."""
    folder = inside(raw, f"Pancreas-CT/PANCREAS_{number}")
    found = find_series(folder) if folder.is_dir() else ()
    return Series(files=tuple(path for one in found for path in one.files))


def _source(raw: Path, *, number: str, flip: str) -> CaseSource:
    case_id = f"nih_{number}"
    label = raw / _LABEL_FOLDER / f"label{number}.nii.gz"
    return CaseSource(
        case_id=case_id,
        images=(series(raw, number=number),),
        labels=(LabelFile(path=label, values=_VALUES, flip=flip),),
        annotated=LABELS.structures,
        group=case_id,
    )
