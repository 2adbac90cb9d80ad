"""BTCV cervix: 30 pelvic CTs of cervical cancer patients with 4 organs contoured, and 20 test CTs without labels.

From the MICCAI 2015 challenge Multi-Atlas Labeling Beyond the Cranial Vault (Landman et al., doi:10.7303/syn3193805; data at
synapse.org/Synapse:syn3193805 after registration, for use under the challenge's terms). `raw` holds the unpacked
`CervixRawData.zip`: `RawData/Training/img/0507688-Image.nii.gz`, `RawData/Training/label/0507688-Mask.nii.gz` and
`RawData/Testing/img/*-Image.nii.gz`. Organs are named as in MultiTalent's task 18. In some patients the field of view ends above or
below an organ, which is then cut off or absent.
"""

from pathlib import Path

from segsweep.data.case import CaseSource, LabelFile
from segsweep.data.layouts import demand_cases, scans
from segsweep.data.readers import stem
from segsweep.data.structures import LabelSet

LABELS = LabelSet(structures=("bladder", "uterus", "rectum", "small_bowel"))
CHANNELS = ("CT",)

_VALUES = {value: (name,) for value, name in enumerate(LABELS.structures, start=1)}


def cases(raw: Path) -> list[CaseSource]:
    """The annotated training cases and, held out, the unlabelled test cases."""
    labelled = [
        raw / "RawData/Training/img" / label.name.replace("-Mask", "-Image")
        for label in scans(raw, "RawData/Training/label/*-Mask.nii.gz")
    ]
    # An image that is not there beside its label is listed too: reading it says so.
    images = sorted({*scans(raw, "RawData/Training/img/*-Image.nii.gz"), *labelled})
    demand_cases(images, raw=raw, layout="RawData/Training/img/*-Image.nii.gz and label/*-Mask.nii.gz (BTCV cervix)")
    return [
        *(_source(image, raw=raw) for image in images),
        *(
            CaseSource(case_id=_name(image), images=(image,), split="test")
            for image in scans(raw, "RawData/Testing/img/*-Image.nii.gz")
        ),
    ]


def _source(image: Path, *, raw: Path) -> CaseSource:
    label = raw / "RawData/Training/label" / image.name.replace("-Image", "-Mask")
    return CaseSource(
        case_id=_name(image),
        images=(image,),
        labels=(LabelFile(path=label, values=_VALUES),),
        annotated=LABELS.structures,
    )


def _name(image: Path) -> str:
    return f"cervix_{stem(image).removesuffix('-Image')}"
