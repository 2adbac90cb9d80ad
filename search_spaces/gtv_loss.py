"""Dice plus cross-entropy against Dice plus focal loss on SegRap2023's tumour volumes, with the plain U-Net of Yang et al.

Patch, batch and epochs, which the poster does not give, are the store's plan and nnU-Net's 1000 epochs. The store should have both CTs as
channels, and the two tumour volumes as structures.
"""

from segsweep.data.segrap_labels import TUMOURS
from segsweep.sweeps.comparison import Row

SOURCE = "Yang et al., SegRap2023 poster (task 2), table of training and validation"
MEASURED = (
    "mean Dice and NSD on the challenge's 20 validation cases, predicted with flips; "
    "ours is measured with flips too, on the cases that the fold holds out"
)
DATASETS = ("segrap2023", "segrap2023_gtv")
STRUCTURES = TUMOURS

ROWS = (
    Row(
        name="Dice + CE",
        trainable="dice_focal_unet",
        params={"loss": "dice_ce", "head": "softmax"},
        published={
            "dice": 0.7861,
            "dice/GTVp": 0.7986,
            "dice/GTVnd": 0.7737,
            "nsd": 0.7270,
            "nsd/GTVp": 0.7228,
            "nsd/GTVnd": 0.7312,
        },
    ),
    Row(
        name="Dice + focal",
        trainable="dice_focal_unet",
        params={"loss": "dice_focal", "head": "softmax"},
        published={
            "dice": 0.7885,
            "dice/GTVp": 0.8044,
            "dice/GTVnd": 0.7726,
            "nsd": 0.7285,
            "nsd/GTVp": 0.7261,
            "nsd/GTVnd": 0.7309,
        },
    ),
)
