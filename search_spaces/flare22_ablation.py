"""FLARE22's ablation by Huang et al.: plain nnU-Net, with unlabelled scans, and then coarse to fine.

The store holds the labelled and the unlabelled scans. The paper does not say how its baseline was trained: here with the patch, batch and
epochs of its coarse model. Where the text gives the last row an NSD of 0.915, its own table has 0.911.
"""

from segsweep.sweeps.comparison import Row

SOURCE = "Huang et al., Abdominal CT organ segmentation by accelerated nnUNet with a coarse to fine strategy (FLARE 2022), table 8"
MEASURED = "mean Dice and NSD over 13 organs on the challenge's 50 validation cases; ours is measured on the cases that the fold holds out"
DATASETS = ("flare22",)

SEEN = {"patch_size": (96, 128, 160), "batch_size": 2, "head": "softmax"}

ROWS = (
    Row(name="baseline", trainable="unet", params=SEEN | {"epochs": 500}, published={"dice": 0.855}),
    Row(
        name="+ unlabelled",
        trainable="coarse_to_fine",
        params=SEEN | {"part": "coarse", "epochs": 500},
        published={"dice": 0.866},
    ),
    Row(
        name="+ unlabelled + coarse to fine",
        trainable="coarse_to_fine",
        params=SEEN | {"part": "fine", "epochs": 150, "learning_rate": 1e-3},
        published={"dice": 0.873, "nsd": 0.911},
        initial="+ unlabelled",
    ),
)
