"""Plain nnU-Net and the plain ResUNet against the ResUNet that is trained in phases, on FLARE24's lesions.

The paper gives neither epochs nor patch: these are nnU-Net's 1000, the recipe's 200, and the store's plan. It has no row for the plain
ResUNet, which shows what the phases do.
"""

from segsweep.sweeps.comparison import Row

SOURCE = "Zhu, Method for MICCAI FLARE24 Challenge, section 4.1 (the table of two values; its text has 0.016 for the ResUNet)"
MEASURED = (
    "mean Dice of the lesion on the challenge's validation cases; ours is measured on the cases that the fold holds out"
)
DATASETS = ("flare24_pancancer",)

ROWS = (
    Row(name="nnU-Net", trainable="unet", published={"dice": 0.331}),
    Row(name="ResUNet", trainable="phased_resunet", params={"first_phase": 0.0}),
    Row(name="ResUNet in phases", trainable="phased_resunet", published={"dice": 0.017}),
)
