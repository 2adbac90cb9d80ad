"""BTCV abdomen: 30 portal venous abdominal CTs with 13 organs contoured, and 20 test CTs without labels.

From the MICCAI 2015 challenge Multi-Atlas Labeling Beyond the Cranial Vault (Landman et al., doi:10.7303/syn3193805; data at
synapse.org/Synapse:syn3193805 after registration, for use under the challenge's terms). `raw` holds the unpacked `RawData.zip` of
"Abdomen": `RawData/Training/img/img0001.nii.gz`, `RawData/Training/label/label0001.nii.gz` (cases 1 to 10 and 21 to 40) and
`RawData/Testing/img/img0061.nii.gz` (61 to 80). Organs are named as in MultiTalent's task 17. The multi-organ set of
`multiorgan_btcv2` labels 47 of these scans again: cases of both carry the same group, so that they fall into one fold.
"""

from pathlib import Path

from segsweep.data.case import CaseSource, LabelFile
from segsweep.data.layouts import demand_cases, pairs_of, scans
from segsweep.data.readers import stem
from segsweep.data.structures import LabelSet

ORGANS = (
    *("spleen", "right_kidney", "left_kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta"),
    *("inf_vena_cava", "port_and_splen_vein", "pancreas", "right_adrenal_gland", "left_adrenal_gland"),
)
LABELS = LabelSet(structures=ORGANS, pairs=pairs_of(ORGANS))
CHANNELS = ("CT",)

_VALUES = {value: (name,) for value, name in enumerate(ORGANS, start=1)}


def cases(raw: Path) -> list[CaseSource]:
    """The annotated training cases and, held out, the unlabelled test cases."""
    labelled = [
        raw / "RawData/Training/img" / label.name.replace("label", "img")
        for label in scans(raw, "RawData/Training/label/label*.nii.gz")
    ]
    # An image that is not there beside its label is listed too: reading it says so.
    images = sorted({*scans(raw, "RawData/Training/img/img*.nii.gz"), *labelled})
    demand_cases(images, raw=raw, layout="RawData/Training/img/img0001.nii.gz and label/label0001.nii.gz (BTCV)")
    return [
        *(_source(image, raw=raw) for image in images),
        *(
            CaseSource(case_id=_name(image), images=(image,), group=_name(image), split="test")
            for image in scans(raw, "RawData/Testing/img/img*.nii.gz")
        ),
    ]


def _source(image: Path, *, raw: Path) -> CaseSource:
    label = raw / "RawData/Training/label" / image.name.replace("img", "label")
    return CaseSource(
        case_id=_name(image),
        images=(image,),
        labels=(LabelFile(path=label, values=_VALUES),),
        annotated=ORGANS,
        group=_name(image),
    )


def _name(image: Path) -> str:
    return stem(image).replace("img", "btcv_")
