"""The models that need no code of the user's: a perceptron and a small convnet."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from torch import nn

from curate.errors import ModelError

ACTIVATIONS = MappingProxyType({"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh})


def mlp(
    shape: Sequence[int],
    outputs: int,
    *,
    hidden: Sequence[int] = (64,),
    activation: str = "gelu",
    dropout: float = 0.0,
) -> nn.Sequential:
    """A perceptron over flattened features: shape (n, *shape) -> (n, outputs)."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = math.prod(shape)
    for size in hidden:
        layers += [nn.Linear(width, size), ACTIVATIONS[activation]()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        width = size
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def cnn(
    shape: Sequence[int],
    outputs: int,
    *,
    channels: Sequence[int] = (16, 32),
    activation: str = "gelu",
    dropout: float = 0.0,
) -> nn.Sequential:
    """3x3 convolutions, each halving the image, and a linear head on what is left.

    (n, channels, height, width) -> (n, outputs). There is no batch
    normalization: it would couple the examples of a batch.
    """
    if len(shape) != 3:
        raise ModelError(
            f"model.kind cnn needs images, shape (channels, height, width), but the features "
            f"have shape {tuple(shape)}; use mlp, or give data.columns.image_shape."
        )
    inputs, height, width = shape
    if min(height, width) < 2 ** len(channels):
        raise ModelError(
            f"model.channels has {len(channels)} halvings, too many for images of {height}x{width}."
        )
    layers: list[nn.Module] = []
    for size in channels:
        layers += [
            nn.Conv2d(inputs, size, kernel_size=3, padding=1),
            ACTIVATIONS[activation](),
            nn.AvgPool2d(2),
        ]
        inputs, height, width = size, height // 2, width // 2
    layers.append(nn.Flatten())
    if dropout:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(inputs * height * width, outputs))


BUILTIN_MODELS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType({"mlp": mlp, "cnn": cnn})
