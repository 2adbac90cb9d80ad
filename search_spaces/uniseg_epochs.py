"""UniSeg fine-tuned on SegRap2023's organs at risk for 1000, 1500 and 2000 epochs, and two ensembles of these.

Needs `pretrained=` a model of `segsweep train uniseg STORES preset=upstream`.
"""

from segsweep.data.segrap_labels import ORGANS
from segsweep.sweeps.comparison import Row

SOURCE = "Ye et al., SegRap2023 poster (task 1), table of several solutions"
MEASURED = (
    "mean Dice and NSD over 45 organs on the challenge's 20 validation cases, trained on all 120 others; "
    "ours is measured on the cases that the fold holds out"
)
DATASETS = ("segrap2023", "segrap2023_oar")
STRUCTURES = ORGANS

SEGRAP = {"patch_size": (32, 192, 192), "batch_size": 2, "head": "softmax"}

ROWS = (
    Row(
        name="A: 1000 epochs",
        trainable="uniseg",
        params=SEGRAP | {"epochs": 1000},
        published={"dice": 0.8882, "nsd": 0.9049},
        pretrained=True,
    ),
    Row(
        name="B: 1500 epochs",
        trainable="uniseg",
        params=SEGRAP | {"epochs": 1500},
        published={"dice": 0.8901, "nsd": 0.9073},
        pretrained=True,
    ),
    Row(
        name="C: 2000 epochs",
        trainable="uniseg",
        params=SEGRAP | {"epochs": 2000},
        published={"dice": 0.8894, "nsd": 0.9060},
        pretrained=True,
    ),
    Row(name="A + B", members=("A: 1000 epochs", "B: 1500 epochs"), published={"dice": 0.8919, "nsd": 0.9104}),
    Row(name="B + C", members=("B: 1500 epochs", "C: 2000 epochs"), published={"dice": 0.8925, "nsd": 0.9110}),
)
