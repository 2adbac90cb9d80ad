"""Takes single frames out of enhanced DICOM images, with their elements where classic files have them."""

from segsweep.data.dicom_file import Dataset, framed, items, text, whole
from segsweep.errors import InputError

FRAME_TAGS = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]
MAX_FRAMES = 20_000

# Where an enhanced image keeps what a classic one has at the top, for a frame or for all (DICOM PS3.3, C.7.6.16).
_GROUPS = {
    "PixelMeasuresSequence": ("PixelSpacing",),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
}


def number_of_frames(dataset: Dataset, *, name: str) -> int:
    """How many frames an enhanced image says to hold. Raises InputError when it does not describe each of them."""
    count = whole(dataset, "NumberOfFrames", name=name, low=1, high=MAX_FRAMES)
    described = len(items(dataset, "PerFrameFunctionalGroupsSequence"))
    if described != count:
        raise InputError(f"{name}: {described} of {count} frames are described; expected all; export it again")
    return count


def one_frame(dataset: Dataset, *, index: int, name: str) -> Dataset:
    """The frame (from 0) as a dataset of its own; with its pixels where the dataset has pixels. Raises InputError for damage."""
    count = number_of_frames(dataset, name=name)
    frame = framed(dataset, index=index, count=count, name=name)
    own = items(dataset, "PerFrameFunctionalGroupsSequence")[index]
    shared = next(iter(items(dataset, "SharedFunctionalGroupsSequence")), None)
    for keyword, wanted in _GROUPS.items():
        holders = items(own, keyword) or (items(shared, keyword) if shared is not None else [])
        for holder in holders[:1]:
            for element in wanted:
                if text(holder, element):
                    setattr(frame, element, holder.get(element))
    return frame
