"""A curve has a point for every epoch that has the value, within its frame."""

import math
from xml.dom import minidom

from segsweep.evaluation.curves import learning_curves


def lines(epochs: list[dict[str, float]]) -> list[list[tuple[float, float]]]:
    """Places of every line's points."""
    drawing = minidom.parseString(learning_curves(epochs))
    return [
        [(float(x), float(y)) for x, y in (point.split(",") for point in line.getAttribute("points").split())]
        for line in drawing.getElementsByTagName("polyline")
    ]


def test_losses_and_dice_are_drawn_beside_each_other() -> None:
    epochs = [
        {"epoch": 1, "loss": 2.0, "patch_dice": 0.2, "patch_dice_smoothed": 0.2},
        {"epoch": 2, "loss": 1.0, "patch_dice": 0.6, "patch_dice_smoothed": 0.3, "dice_scan": 0.4},
        {"epoch": 3, "loss": -0.5, "patch_dice": 0.8, "patch_dice_smoothed": 0.4},
    ]
    loss, patch, smoothed, scan = lines(epochs)
    assert [len(line) for line in (loss, patch, smoothed, scan)] == [3, 3, 3, 1]
    assert loss[0][1] < loss[1][1] < loss[2][1], "a falling loss goes down, whatever its sign"
    assert patch[0][1] > patch[1][1] > patch[2][1]
    assert max(x for x, _ in loss) < min(x for x, _ in patch)
    words = learning_curves(epochs)
    assert ">patches, smoothed<" in words and ">epoch 3<" in words


def test_one_epoch_without_dice_is_a_dot_and_one_gone_astray_is_nothing() -> None:
    drawing = minidom.parseString(learning_curves([{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": math.nan}]))
    assert len(drawing.getElementsByTagName("circle")) == 1
    assert len(drawing.getElementsByTagName("polyline")) == 1
