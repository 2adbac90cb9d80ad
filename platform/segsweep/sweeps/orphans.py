"""The places of workers whose Ray Train controller died: Ray keeps them while the driver lives, and nobody else can train there."""

import ray
from ray import ActorID, PlacementGroupID
from ray._private.state import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]  made by protobuf
from ray.util.placement_group import PlacementGroup, remove_placement_group

# The maker of a group that no actor made.
NOBODY = (b"", ActorID.nil().binary())


def free_orphans() -> None:
    """Remove the placement groups of this driver's job that a dead actor made."""
    job = ray.get_runtime_context().get_job_id()
    for serialized in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(serialized)
        own = group.creator_job_id.hex() == job and group.creator_actor_id not in NOBODY
        if own and group.creator_actor_dead and not group.is_detached and group.state != group.REMOVED:
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))
