import io

import numpy as np
from matplotlib.image import imread

from segsweep.evaluation.pictures import PLANES, three_planes


def panels(image, *, mask, spacing=(3.0, 1.0, 1.0)):
    """The three planes' grey parts: (rows, columns) brightness of each third, without its title and marks."""
    png = three_planes(image, reference=mask, prediction=mask, spacing=spacing)
    assert png is not None
    picture = imread(io.BytesIO(png))[:, :, :3].mean(axis=2)
    return np.array_split(picture, 3, axis=1)


def test_sides_are_where_the_marks_say():
    assert [plane.marks for plane in PLANES] == [("R", "L", "A", "P"), ("R", "L", "S", "I"), ("A", "P", "S", "I")]
    mask = np.zeros((40, 80, 80), dtype=bool)
    mask[18:22, 38:42, 38:42] = True
    for axis, sides in enumerate([(None, "top", "top"), ("bottom", None, "right"), ("right", "right", None)]):
        # Bright towards the head, the back, the patient's left in turn.
        image = np.full(mask.shape, -160.0)
        image[tuple(slice(n * 5 // 8, None) if axis == i else slice(None) for i, n in enumerate(mask.shape))] = 240.0
        for panel, side in zip(panels(image, mask=mask), sides, strict=True):
            rows, columns = np.nonzero(panel > 0.98)
            if side is None:
                continue
            centre = {"top": -rows.mean(), "bottom": rows.mean(), "right": columns.mean()}[side]
            half = {"top": -panel.shape[0] / 2, "bottom": panel.shape[0] / 2, "right": panel.shape[1] / 2}[side]
            assert centre > half, (axis, side)


def test_nothing_to_show_without_voxels():
    empty = np.zeros((3, 4, 5), dtype=bool)
    assert three_planes(None, reference=empty, prediction=empty, spacing=(1.0, 1.0, 1.0)) is None


def test_masks_at_the_border_without_an_image():
    reference, prediction = np.zeros((3, 4, 5), dtype=bool), np.zeros((3, 4, 5), dtype=bool)
    prediction[:, :, 4] = True
    png = three_planes(None, reference=reference, prediction=prediction, spacing=(3.0, 1.0, 1.0))
    assert png is not None
    assert imread(io.BytesIO(png)).max() > 0.5
