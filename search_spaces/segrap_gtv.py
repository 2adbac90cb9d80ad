"""MultiTalent's table for SegRap2023's tumour volumes: architecture, epochs, patch, batch, oversampling and pre-training.

Needs `pretrained=` a model of `segsweep train multitalent STORES preset=pretraining` for three of its eight rows. The authors gave the
network the contrast-enhanced CT and the two tumour volumes alone, so the store should have that channel and those structures.
"""

from segsweep.data.segrap_labels import TUMOURS
from segsweep.sweeps.comparison import Row

SOURCE = "Ulrich and Maier-Hein, SegRap2023 poster, table 2"
MEASURED = "Dice over the two tumour volumes, mean over the cases that one fold holds out, or all five (dice, 5 folds)"
DATASETS = ("segrap2023", "segrap2023_gtv")
STRUCTURES = TUMOURS

# "Default" oversampling forces one of two patches to hold foreground; "0.33%" is a slip for 33 %, read as that chance for every patch.
UNET = {
    "epochs": 2000,
    "patch_size": (28, 256, 256),
    "batch_size": 2,
    "oversampling": "probabilistic",
    "head": "softmax",
}
RESENC = {"epochs": 2000, "patch_size": (32, 320, 256), "batch_size": 2, "oversampling": "probabilistic"}
DEFAULT = {"oversampling": "deterministic"}
FIVE = "dice, 5 folds"

ROWS = (
    Row(name="U-Net", trainable="unet", params=UNET | DEFAULT | {"epochs": 1000}, published={"dice": 0.7502}),
    Row(name="U-Net, 2000 epochs, 33%", trainable="unet", params=UNET, published={"dice": 0.7578, FIVE: 0.7644}),
    Row(
        name="U-Net, 2000 epochs, batch 4, 33%",
        trainable="unet",
        params=UNET | {"batch_size": 4},
        published={"dice": 0.7522, FIVE: 0.7642},
    ),
    Row(
        name="U-Net, 2000 epochs, large patch, 33%",
        trainable="unet",
        params=UNET | {"patch_size": (32, 320, 256)},
        published={"dice": 0.7535, FIVE: 0.7619},
    ),
    Row(name="ResEnc U-Net", trainable="multitalent", params=RESENC | DEFAULT, published={"dice": 0.7439}),
    Row(
        name="ResEnc U-Net, pre-trained",
        trainable="multitalent",
        params=RESENC | DEFAULT,
        published={"dice": 0.7466},
        pretrained=True,
    ),
    Row(
        name="ResEnc U-Net, 33%, pre-trained",
        trainable="multitalent",
        params=RESENC,
        published={"dice": 0.7490},
        pretrained=True,
    ),
    Row(
        name="ResEnc U-Net, batch 4, 33%, pre-trained",
        trainable="multitalent",
        params=RESENC | {"batch_size": 4},
        published={"dice": 0.7570, FIVE: 0.7644},
        pretrained=True,
    ),
)
