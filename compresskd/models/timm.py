"""Image models of timm by name, fresh; trained weights come from a file, as for every other architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from compresskd.models.checks import Classes, Shape, image_shape
from compresskd.options import OptionError, checked, did_you_mean

# What timm would read from elsewhere, and what this function tells it.
_RESERVED = (
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "num_classes", "in_chans",
    "img_size", "features_only", "scriptable", "exportable", "no_jit",
)  # fmt: skip


@checked
def timm(
    *, name: str, num_classes: Classes, input_shape: Shape, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """The architecture of this name, for images of this shape.

    Args:
        name: as `timm.list_models()` has it, such as resnet18 or vit_tiny_patch16_224.
        num_classes: number of logits.
        input_shape: [C, H, W]; architectures of one fixed size of images are built for it.
        options: others of the architecture, such as {drop_path_rate: 0.1}.

    Raises:
        OptionError: an unknown name, or an option that is not the architecture's.
        ValueError: timm is not there, or the inputs are no images.
    """
    library = _timm()
    if not library.is_model(name):
        raise OptionError("name", name, f"a model of timm{did_you_mean(name, library.list_models())}")
    options = dict(options or {})
    for option in _RESERVED:
        if option in options:
            raise OptionError(f"options.{option}", options[option], f"an option of {name} itself")
    channels, height, width = image_shape(input_shape, architecture=name)
    described = library.get_pretrained_cfg(name)
    if described is not None and described.fixed_input_size:
        options["img_size"] = (height, width)
    try:
        return library.create_model(
            name, pretrained=False, num_classes=num_classes, in_chans=channels, **options
        )
    except (AssertionError, TypeError, ValueError) as error:
        field = "options" if options.keys() - {"img_size"} else "name"
        got = dict(options) if field == "options" else name
        reason = " ".join(str(error).split())
        raise OptionError(field, got, f"what timm builds for {height}x{width} images: {reason}") from error


def _timm() -> Any:
    try:
        import timm as library
    except (
        ImportError,
        RuntimeError,
    ) as error:  # torchvision, which it needs, may be of another version of torch
        raise ValueError(
            f"timm cannot be imported ({str(error).splitlines()[0]}); write pip install 'compresskd[timm]', with the "
            "torchvision that belongs to this torch"
        ) from error
    return library
