"""Image networks of the library timm, by name."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from bitsback.errors import ConfigError, brief, near_miss
from bitsback.extras import require

__all__ = ["build_timm"]


def build_timm(model: str, arguments: Mapping[str, float], image: tuple[int, int, int], outputs: int) -> nn.Module:
    """Make a network of timm with new weights; nothing is downloaded.

    Args:
        model: name of the architecture.
        arguments: of the architecture.
        image: channels, height and width.
        outputs: number of outputs.

    Returns:
        the network.

    Raises:
        ConfigError: if timm cannot be imported, or has no such architecture or argument.
        MissingExtraError: if timm is not installed.
    """
    require("vision", "a network of timm")
    try:
        import timm
    except Exception as error:  # torchvision, which it imports, fails in several ways beside another torch
        raise ConfigError(
            f"timm is installed and cannot be imported ({brief(error)}); install a torchvision that fits torch"
        ) from error
    if not timm.is_model(model):
        known = timm.list_models()
        raise ConfigError(
            f"network.model: timm has no '{model}'{near_miss(model, known)}; timm.list_models() has {len(known):,}"
        )
    options: dict[str, Any] = dict(arguments)
    defaults = timm.get_pretrained_cfg(model)
    if defaults is not None and defaults.fixed_input_size:
        options.setdefault("img_size", image[1:])
    try:
        return timm.create_model(model, pretrained=False, num_classes=outputs, in_chans=image[0], **options)
    except (TypeError, ValueError, RuntimeError, AssertionError, ArithmeticError) as error:
        raise ConfigError(f"network.model: {model} of timm cannot be made for images {image}: {brief(error)}") from error
