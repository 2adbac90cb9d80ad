"""nnU-Net's side of export.py, in its own interpreter: its export functions on logits that lie in a file, with its default plan.

usage: export_nnunet.py '{"logits": FILE.npy, "label": OUT.npy, "shape": [z, y, x], "spacing": [...], "spacing_from": [...], "threads": N}'
"""

import json
import sys
import time

import numpy as np
import torch
from export_memory import PeakMemory
from nnunetv2.inference.export_prediction import (  # type: ignore[import-not-found]
    convert_predicted_logits_to_segmentation_with_correct_shape as export,
)
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # type: ignore[import-not-found]

# As its default planner writes it (determine_segmentation_softmax_export_fn), and as its planner that resamples with torch does.
RESAMPLERS = {
    "default": ("resample_data_or_seg_to_shape", {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}),
    "torch": (
        "resample_torch_fornnunet",
        {"is_seg": False, "force_separate_z": False, "memefficient_seg_resampling": False},
    ),
}


def main() -> None:
    """Export once, and print seconds and bytes as JSON."""
    asked = json.loads(sys.argv[1])
    logits = torch.from_numpy(np.load(asked["logits"]))
    function, options = RESAMPLERS[asked["resampler"]]
    plans = PlansManager(
        {
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": {
                "3d_fullres": {
                    "architecture": {},
                    "spacing": asked["spacing_from"],
                    "resampling_fn_probabilities": function,
                    "resampling_fn_probabilities_kwargs": options,
                }
            },
        }
    )
    labels = plans.get_label_manager(
        {"labels": {f"class {value}" if value else "background": value for value in range(len(logits))}}
    )
    shape = asked["shape"]
    properties = {
        "spacing": asked["spacing"],
        "shape_after_cropping_and_before_resampling": shape,
        "shape_before_cropping": shape,
        "bbox_used_for_cropping": [[0, size] for size in shape],
    }
    with PeakMemory() as memory:
        begun, worked = time.perf_counter(), time.process_time()
        label = export(
            logits, plans, plans.get_configuration("3d_fullres"), labels, properties, False, asked["threads"]
        )
        seconds, processor = time.perf_counter() - begun, time.process_time() - worked
    np.save(asked["label"], label)
    print(json.dumps({"seconds": seconds, "processor": processor, "bytes": memory.above}))


if __name__ == "__main__":
    main()
