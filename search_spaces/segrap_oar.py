"""MultiTalent's table for SegRap2023's organs at risk: architecture, patch, batch, oversampling and pre-training.

Needs `pretrained=` a model of `segsweep train multitalent STORES preset=pretraining` for four of its seven rows. The authors gave the
network the CT without contrast and the organs alone, so the store should have that channel and those structures.
"""

from segsweep.data.segrap_labels import ORGANS
from segsweep.sweeps.comparison import Row

SOURCE = "Ulrich and Maier-Hein, SegRap2023 poster, table 1"
MEASURED = (
    "Dice over 54 classes that do not overlap, mean over the cases that one fold holds out, or all five (dice, 5 folds); "
    "ours is over the 45 organs, which overlap"
)
DATASETS = ("segrap2023", "segrap2023_oar")
STRUCTURES = ORGANS

# "Default" oversampling forces one of two patches to hold foreground; "33%" is read as that chance for every patch by itself.
RESENC = {"epochs": 2000, "patch_size": (32, 320, 256), "batch_size": 2, "oversampling": "deterministic"}
CHANCE = {"oversampling": "probabilistic"}
FIVE = "dice, 5 folds"

ROWS = (
    Row(
        name="U-Net",
        trainable="unet",
        params=RESENC | {"epochs": 1000, "patch_size": (28, 256, 256), "head": "softmax"},
        published={"dice": 0.7788},
    ),
    Row(name="ResEnc U-Net", trainable="multitalent", params=RESENC, published={"dice": 0.7804}),
    Row(name="ResEnc U-Net, 33%", trainable="multitalent", params=RESENC | CHANCE, published={"dice": 0.7263}),
    Row(
        name="ResEnc U-Net, pre-trained",
        trainable="multitalent",
        params=RESENC,
        published={"dice": 0.8248, FIVE: 0.8202},
        pretrained=True,
    ),
    Row(
        name="ResEnc U-Net, 33%, pre-trained",
        trainable="multitalent",
        params=RESENC | CHANCE,
        published={"dice": 0.8276, FIVE: 0.8223},
        pretrained=True,
    ),
    Row(
        name="ResEnc U-Net, batch 4, pre-trained",
        trainable="multitalent",
        params=RESENC | {"batch_size": 4},
        published={"dice": 0.8254, FIVE: 0.8234},
        pretrained=True,
    ),
    Row(
        name="ResEnc U-Net, batch 4, 33%, pre-trained",
        trainable="multitalent",
        params=RESENC | CHANCE | {"batch_size": 4},
        published={"dice": 0.8226, FIVE: 0.8253},
        pretrained=True,
    ),
)
