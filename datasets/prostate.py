"""Multi-site prostate: 116 T2-weighted prostate MRs of six sites with the prostate contoured.

Put together for SAML (Liu et al., MICCAI 2020, doi:10.1007/978-3-030-59713-9_46; data at liuquande.github.io/SAML) from NCI-ISBI 2013
(RUNMC, BMC; 30 each), I2CVB (19) and PROMISE12 (UCL 13, BIDMC 12, HK 12), each under its own terms of research use. `raw` holds
a folder a site with `Case00.nii.gz` and `Case00_segmentation.nii.gz` (BMC writes `_Segmentation`). Sites label zones with several
values: whatever is above 0 is prostate. Case numbers repeat from site to site, so cases are named by site and number.
UniSeg gave the labels their images' headers; a label whose own header places it elsewhere is refused here, not mended.
"""

from pathlib import Path

from segsweep.data.case import CaseSource, MaskFile
from segsweep.data.layouts import demand_cases, one_each, scans
from segsweep.data.readers import stem
from segsweep.data.structures import LabelSet

LABELS = LabelSet(structures=("prostate",))
CHANNELS = ("T2",)
SITES = ("BIDMC", "BMC", "HK", "I2CVB", "RUNMC", "UCL")

_LABEL = "_segmentation"


def cases(raw: Path) -> list[CaseSource]:
    """All cases of the sites that are there, annotated for training."""
    found = [source for site in SITES for source in _site(raw, site=site)]
    demand_cases(found, raw=raw, layout="BIDMC/Case00.nii.gz and Case00_segmentation.nii.gz, and so on (six sites)")
    return found


def _site(raw: Path, *, site: str) -> list[CaseSource]:
    files = {name.lower(): path for name, path in one_each(scans(raw, f"{site}/Case*.nii.gz")).items()}
    images = {name: path for name, path in files.items() if not name.endswith(_LABEL)}
    for name, label in files.items():
        # An image that is not there beside its label is listed too: reading it says so.
        if name.endswith(_LABEL) and name.removesuffix(_LABEL) not in images:
            images[name.removesuffix(_LABEL)] = label.with_name(f"{stem(label)[: -len(_LABEL)]}.nii.gz")
    return [
        _source(image, label=files.get(name + _LABEL), case_id=f"{site}_C{name.removeprefix('c')}")
        for name, image in images.items()
    ]


def _source(image: Path, *, label: Path | None, case_id: str) -> CaseSource:
    expected = image.with_name(image.name.replace(".nii.gz", f"{_LABEL}.nii.gz"))
    return CaseSource(
        case_id=case_id,
        images=(image,),
        labels=(MaskFile(path=label or expected, structure="prostate"),),
        annotated=LABELS.structures,
    )
