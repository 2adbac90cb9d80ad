"""nnU-Net v2's plans.json and dataset.json in our terms: which network, on what task, with every axis turned back to (z, y, x).

`axes` names, for each of z, y and x, its place in the plan's own order. Values that make no sense raise KeyError, TypeError or
ValueError (the reader names the files), those that make sense but cannot be expressed here ModelError.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from segsweep.data.geometry import Size
from segsweep.data.planning import Normalisation, Plan, demand_usable
from segsweep.data.structures import LabelSet, LabelTable, join
from segsweep.errors import ModelError, unknown
from segsweep.learning.task import Head, Task

# Our recipe for each of nnU-Net's networks, and where its plans count what a level of the encoder holds.
RECIPES = {"PlainConvUNet": ("unet", "n_conv_per_stage"), "ResidualEncoderUNet": ("resenc_unet", "n_blocks_per_stage")}
# What the recipes are made of; a plan with anything else is refused.
PARTS: Mapping[str, Any] = {
    "conv_op": "Conv3d",
    "conv_bias": True,
    "norm_op": "InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
SIZES = ("n_stages", "features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage_decoder")
AXES = ("z", "y", "x")
SCHEMES = {"CTNormalization": "ct", "ZScoreNormalization": "z-score"}


def read_configuration(plan: Mapping[str, Any], *, name: str) -> dict[str, Any]:
    """A configuration with what it inherits from others."""
    every, chain = plan["configurations"], [name]
    while chain[-1]:
        if chain[-1] not in every:
            raise ModelError(unknown(str(chain[-1]), kind="configurations in plans.json", known=every))
        parent = every[chain[-1]].get("inherits_from")
        if parent in chain:
            raise ValueError(f"configuration {parent!r} inherits from itself")
        chain.append(parent)
    merged: dict[str, Any] = {}
    for link in reversed(chain[:-1]):
        merged |= every[link]
    if len(merged["patch_size"]) != len(AXES):
        raise ModelError(
            f"configuration {name!r} has patches of {len(merged['patch_size'])} axes; expected a 3D one, such as 3d_fullres"
        )
    if merged.get("previous_stage"):
        raise ModelError(
            f"configuration {name!r} is the second network of a cascade; expected one that sees the scan alone"
        )
    return merged


def read_architecture(configuration: Mapping[str, Any], *, axes: Sequence[int]) -> tuple[str, dict[str, Any]]:
    """The recipe and its own parameters."""
    kind, values = _named_architecture(configuration)
    if kind not in RECIPES:
        raise ModelError(f"the network is a {kind}; expected {' or '.join(RECIPES)}")
    trainable, counted = RECIPES[kind]
    found = {key: _plain(value) if key in ("conv_op", "norm_op", "nonlin") else value for key, value in values.items()}
    odd = {key: value for key, value in found.items() if value != PARTS.get(key, value)}
    odd |= {key: value for key, value in found.items() if key not in (*PARTS, *SIZES, counted)}
    if odd:
        raise ModelError(
            f"the network has {odd}; expected nnU-Net's usual {', '.join(map(str, PARTS))} and nothing else"
        )
    features, count = list(values["features_per_stage"]), int(values["n_stages"])
    strides = [_turned(stride, axes=axes) for stride in values["strides"]]
    kernels = [_turned(kernel, axes=axes) for kernel in values["kernel_sizes"]]
    encoder, decoder = _each(values[counted], count), _each(values["n_conv_per_stage_decoder"], count - 1)
    plain = trainable == "unet"
    doubled = [min(features[0] * 2**level, max(features)) for level in range(count)]
    even = any(size % 2 == 0 for kernel in kernels for size in kernel)
    if features != doubled or strides[0] != (1, 1, 1) or even or len({*decoder, *(encoder if plain else [])}) != 1:
        raise ModelError(
            f"the network has features {features}, strides {strides}, kernels {kernels}, {counted} {encoder} and "
            f"n_conv_per_stage_decoder {decoder}; expected features that double, a first stride of 1, odd kernels and equal levels"
        )
    built = {"features": features[0], "most_features": max(features), "convolutions": decoder[0]}
    return trainable, built | {"strides": strides, "kernels": kernels} | ({} if plain else {"blocks": encoder})


def _named_architecture(configuration: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Class and sizes as plans.json names them, or as it did before nnU-Net 2.4."""
    if "architecture" in configuration:
        architecture = configuration["architecture"]
        return _plain(architecture["network_class_name"]), architecture["arch_kwargs"]
    kind, encoder = configuration["UNet_class_name"], configuration["n_conv_per_stage_encoder"]
    base, most = configuration["UNet_base_num_features"], configuration["unet_max_num_features"]
    return kind, {
        "n_stages": len(encoder),
        "features_per_stage": [min(base * 2**level, most) for level in range(len(encoder))],
        "kernel_sizes": configuration["conv_kernel_sizes"],
        "strides": configuration["pool_op_kernel_sizes"],
        RECIPES.get(kind, ("", "encoder"))[1]: encoder,
        "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
    }


def read_task(
    plan: Mapping[str, Any], *, configuration: Mapping[str, Any], dataset: Mapping[str, Any], axes: Sequence[int]
) -> Task:
    named = dataset["channel_names"] if "channel_names" in dataset else dataset["modality"]
    channels = tuple(str(named[key]) for key in sorted(named, key=int))
    table, head = _labels(dataset["labels"])
    spacing = tuple(float(configuration["spacing"][axis]) for axis in axes)
    usable = Plan(
        spacing=(spacing[0], spacing[1], spacing[2]),
        patch_size=_turned(configuration["patch_size"], axes=axes),
        batch_size=int(configuration["batch_size"]),
        median_shape=(1, 1, 1),
        normalisation=_normalisation(plan, configuration=configuration),
        head=head,
    )
    demand_usable(usable, num_channels=len(channels))
    return Task(
        channels=channels,
        table=table,
        head=head,
        patch_size=usable.patch_size,
        spacing=usable.spacing,
        normalisation=usable.normalisation,
    )


def _labels(given: Mapping[str, int | list[int]]) -> tuple[LabelTable, Head]:
    """Labels in the order of the network's outputs: by value; regions in the order of the file."""
    regions = {
        _named(name): frozenset(map(int, value if isinstance(value, list) else [value]))
        for name, value in given.items()
        if name != "ignore"
    }
    foreground = {name: values for name, values in regions.items() if values != {0}}
    # A list of one value is a plain label to nnU-Net.
    if any(len(values) > 1 for values in regions.values()):
        each = sorted(frozenset().union(*foreground.values()))
        atoms = (tuple(index for index, values in enumerate(foreground.values()) if value in values) for value in each)
        return LabelTable(labels=LabelSet(structures=tuple(foreground)), atoms=join([tuple(atoms)])), "sigmoid"
    names = sorted(foreground, key=lambda name: min(foreground[name]))
    if [min(foreground[name]) for name in names] != list(range(1, len(names) + 1)):
        raise ValueError(f"labels are {dict(given)}, expected whole numbers from 1 without a gap")
    atoms = ((), *((index,) for index in range(len(names))))
    return LabelTable(labels=LabelSet(structures=tuple(names)), atoms=atoms), "softmax"


def _named(name: str) -> str:
    if not name.strip() or not name.isprintable() or "/" in name:
        raise ModelError(
            f"labels name {name!r}; expected printable characters without '/', which parts a dataset from its structures: "
            "rename it in a copy of dataset.json and give that one"
        )
    return name


def _normalisation(plan: Mapping[str, Any], *, configuration: Mapping[str, Any]) -> tuple[Normalisation, ...]:
    rules = []
    for index, scheme in enumerate(configuration["normalization_schemes"]):
        masked = scheme == "ZScoreNormalization" and configuration["use_mask_for_norm"][index]
        if scheme not in SCHEMES or masked:
            shown = f"{scheme} inside the nonzero mask" if masked else scheme
            raise ModelError(
                f"channel {index} is normalised by {shown}; expected {' or '.join(SCHEMES)} of the whole scan"
            )
        if SCHEMES[scheme] == "z-score":
            rules.append(Normalisation(scheme="z-score"))
            continue
        seen = plan["foreground_intensity_properties_per_channel"][str(index)]
        low, high, mean, deviation = (float(seen[key]) for key in ("percentile_00_5", "percentile_99_5", "mean", "std"))
        rules.append(Normalisation(scheme="ct", low=low, high=high, mean=mean, deviation=deviation))
    return tuple(rules)


def _turned(values: Sequence[int], *, axes: Sequence[int]) -> Size:
    z, y, x = (int(values[axis]) for axis in axes)
    return z, y, x


def _each(value: int | Sequence[int], count: int) -> list[int]:
    """One number a level."""
    numbers = [int(value)] * count if isinstance(value, int) else [int(number) for number in value]
    if len(numbers) != count:
        raise ValueError(f"{numbers} does not name {count} levels")
    return numbers


def _plain(name: str) -> str:
    """The last part of a dotted name."""
    return name.rpartition(".")[2]
