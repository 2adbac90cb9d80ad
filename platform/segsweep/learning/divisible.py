"""Patches that a network can halve as often as it does, without remainder."""

from segsweep.data.geometry import Size
from segsweep.errors import RecipeError
from segsweep.learning.task import Task


def demand_divisible(task: Task, *, by: Size, network: str) -> None:
    """Raise RecipeError, with a patch that will do, unless the task's patch is a multiple of `by` voxels along (z, y, x).

    It must be twice as many along one axis: a single voxel at the deepest level has no variance to normalise by.
    """
    counts = [-(-size // step) for size, step in zip(task.patch_size, by, strict=True)]
    expected = f"multiples of {by} voxels (z, y, x)"
    if max(counts) == 1:
        counts[-1], expected = 2, f"more than {by} voxels (z, y, x), of which its deepest level keeps one"
    z, y, x = (count * step for count, step in zip(counts, by, strict=True))
    if task.patch_size != (z, y, x):
        raise RecipeError(
            f"patch_size={task.patch_size} does not suit {network}: expected {expected}; "
            f"choose patch_size={z},{y},{x}, for example"
        )
