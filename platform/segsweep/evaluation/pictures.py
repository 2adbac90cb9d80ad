"""Axial, coronal and sagittal pictures of one structure with both contours, as PNG bytes."""

import io
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from segsweep.data.geometry import Spacing
from segsweep.evaluation.overlays import MARGIN_MM, PREDICTION_COLOUR, REFERENCE_COLOUR, WINDOW_HU
from segsweep.evaluation.surface import Box, joint_box

# Dots an inch; the black rim around a plane as a share of the figure.
DPI, RIM = 100, 0.004


@dataclass(frozen=True, kw_only=True)
class Plane:
    """A plane by the axis (of z, y, x) that it cuts, and the patient's sides at the picture's rims."""

    name: str
    axis: int
    marks: tuple[str, str, str, str]  # left, right, top, bottom


# Canonical arrays: z to the head, y to the back, x to the patient's left. Right of the patient is shown on the left.
PLANES = (
    Plane(name="axial", axis=0, marks=("R", "L", "A", "P")),
    Plane(name="coronal", axis=1, marks=("R", "L", "S", "I")),
    Plane(name="sagittal", axis=2, marks=("A", "P", "S", "I")),
)


def three_planes(
    image: NDArray | None, *, reference: NDArray[np.bool_], prediction: NDArray[np.bool_], spacing: Spacing
) -> bytes | None:
    """PNG through the reference's centre (the prediction's, where the reference is empty); None when both masks are empty.

    Arrays are (z, y, x) in canonical orientation, the image in HU; without an image the masks are shown on black.
    """
    box = joint_box(prediction, other=reference)
    if box is None:
        return None
    region = _with_margin(box, shape=reference.shape, spacing=spacing)
    shown = reference[region] if reference[region].any() else prediction[region]
    centre = tuple(round(float(places.mean())) for places in np.nonzero(shown))
    figure = Figure(figsize=(9.6, 3.2), dpi=DPI, facecolor="black")
    FigureCanvasAgg(figure)
    for place, plane in enumerate(PLANES):
        axes = figure.add_axes((place / 3 + RIM, RIM, 1 / 3 - 2 * RIM, 1 - 2 * RIM))
        cut = tuple(centre[axis] if axis == plane.axis else slice(None) for axis in range(3))
        background = np.full(shown.shape, WINDOW_HU[0])[cut] if image is None else image[region][cut]
        _draw(axes, plane=plane, background=background, spacing=spacing)
        _outline(axes, mask=reference[region][cut], colour=REFERENCE_COLOUR, style="solid")
        _outline(axes, mask=prediction[region][cut], colour=PREDICTION_COLOUR, style="dashed")
        _write(figure, plane=plane, left=place / 3)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor="black")
    return stream.getvalue()


def _draw(axes: Axes, *, plane: Plane, background: NDArray, spacing: Spacing) -> None:
    rows, columns = (value for axis, value in enumerate(spacing) if axis != plane.axis)
    axes.imshow(
        background,
        cmap="gray",
        vmin=WINDOW_HU[0],
        vmax=WINDOW_HU[1],
        aspect=rows / columns,
        origin="upper" if plane.axis == 0 else "lower",
        interpolation="nearest",
    )
    axes.set_axis_off()


def _write(figure: Figure, *, plane: Plane, left: float) -> None:
    """The plane's name and sides at the rims of its third of the figure."""
    places = {
        (0.01, 0.5): "left center",
        (0.99, 0.5): "right center",
        (0.5, 0.98): "center top",
        (0.5, 0.02): "center bottom",
    }
    for word, (x, y), where in (
        (plane.name, (0.01, 0.98), "left top"),
        *((mark, place, where) for mark, (place, where) in zip(plane.marks, places.items(), strict=True)),
    ):
        across, up = where.split()
        text = figure.text(left + x / 3, y, word, color="white", fontsize=10, fontweight="bold", ha=across, va=up)
        text.set_path_effects([withStroke(linewidth=3, foreground="black")])


def _outline(axes: Axes, *, mask: NDArray[np.bool_], colour: str, style: str) -> None:
    """The mask's outline at voxel centres; padded, so that it closes at the picture's rim."""
    if not mask.any():
        return
    rows, columns = (np.arange(-1, n + 1) for n in mask.shape)
    limits = axes.get_xlim(), axes.get_ylim()
    axes.contour(
        columns, rows, np.pad(mask, 1).astype(float), levels=[0.5], colors=[colour], linestyles=[style], linewidths=1.4
    )
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])


def _with_margin(box: Box, *, shape: tuple[int, ...], spacing: Spacing) -> Box:
    z, y, x = (
        slice(max(0, side.start - round(MARGIN_MM / mm)), min(n, side.stop + round(MARGIN_MM / mm)))
        for side, n, mm in zip(box, shape, spacing, strict=True)
    )
    return z, y, x
