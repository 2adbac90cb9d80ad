"""Patches that a network can halve as often as it does, without remainder."""

from segsweep.data.geometry import Size
from segsweep.errors import RecipeError
from segsweep.learning.task import Task


def demand_divisible(task: Task, *, by: Size, network: str) -> None:
    """Raise RecipeError unless the task's patch is a multiple of `by` voxels along (z, y, x) and, along an axis at least, not the first
    one: a single voxel at the deepest level has no variance to normalise by. The sentence names a patch that will do."""
    counts = [-(-size // step) for size, step in zip(task.patch_size, by, strict=True)]
    if max(counts) == 1:
        counts[-1] = 2
    z, y, x = (count * step for count, step in zip(counts, by, strict=True))
    if task.patch_size != (z, y, x):
        raise RecipeError(
            f"patch_size={task.patch_size} does not suit {network}: expected multiples of {by} voxels (z, y, x), twice as many "
            f"along one axis at least; choose patch_size={z},{y},{x}, for example"
        )
