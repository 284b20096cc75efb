"""The preset dictionary of the compact form's header: what such headers usually say, likeliest last.

It is part of the format: a file can be read only with the dictionary that it was written with, so that nothing
here may ever change.
"""

from typing import Any, cast

import msgpack

_WORDS = (
    "per_group", "per_channel", "per_rank_slice", "first", "last", "torch", "class_names", "versions", "data",
    "input_dims", "output_dims", "layers", "tt_rank", "gelu", "silu", "tanh", "leaky_relu", "relu", "activation",
    "dropout", "mlp_ratio", "num_heads", "patch_size", "padding", "hidden", "width_multiplier", "depth", "width",
)  # fmt: skip
_DATA = {
    "synthetic": ([5000], [5000]),
    "digits": ([3053], [3760]),
    "cifar100": ([5071, 4865, 4409], [2673, 2564, 2762]),
    "cifar10": ([4850, 4560, 4060], [2290, 2240, 2250]),
    "fashion_mnist": ([2860], [3530]),
    "mnist": ([1307], [3081]),
}
_NAMES = {
    "cifar10": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    "fashion_mnist": [
        "T - shirt / top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ],
}  # fmt: skip
_MODELS: tuple[tuple[str, dict[str, object]], ...] = (
    ("models.tt_mlp.TTMLP", {"layers": [{"input_dims": [], "output_dims": [], "tt_rank": 8}]}),
    ("models.vit.VisionTransformer", {}),
    ("models.wide_resnet.WideResNet", {"depth": 16, "width": 1}),
    ("models.resnet_x4.ResNetX4", {"depth": 8}),
    ("models.resnet.ResNet", {"depth": 56}),
    ("models.resnet.ResNet", {"depth": 20}),
    ("models.mlp.MLP", {"hidden": [256, 256]}),
    ("models.mlp.MLP", {"hidden": [300, 100]}),
    ("models.lenet.LeNet5", {"width_multiplier": 0.5}),
    ("models.lenet.LeNet5", {}),
    ("models.mlp.MLP", {"hidden": [300, 100], "bias": False}),
    ("models.lenet.LeNet5", {"bias": False}),
)


def plain_bytes(value: Any) -> bytes:
    """msgpack of plain values."""
    return cast(bytes, msgpack.packb(value))


def _pieces() -> list[bytes]:
    pieces = [plain_bytes(word) for word in _WORDS]
    for name, (mean, std) in _DATA.items():
        names = {"c": _NAMES[name]} if name in _NAMES else {}
        pieces.append(plain_bytes({"": [name, [*mean, *std], {"compresskd": "0.1.0"}], **names}))
    for shape in ([3, 32, 32], [1, 28, 28]):
        for target, options in _MODELS:
            kwargs = {**options, "num_classes": 10, "input_shape": shape}
            pieces.append(plain_bytes(target) + plain_bytes(kwargs))
    return pieces


DICTIONARY = b"".join(_pieces())
