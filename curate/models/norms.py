"""Batch normalization that does not mix the rows of a batch: by the statistics that it has."""

from functools import cache
from typing import Any

from torch import nn


def freeze_norms(module: nn.Module) -> nn.Module:
    """Have layers of batch normalization use their running statistics, in training, too.

    As pretrained ones are fine-tuned. Their weights and biases are trained as before; `train()`
    does not reach them any more. Layers whose statistics were never taken only shift and scale.

    Returns:
        the module itself.
    """
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
            kind: Any = type(layer)
            layer.__class__ = _frozen(kind)
            layer.eval()
    return module


@cache
def _frozen(kind: Any) -> Any:
    """A kind of layer that stays in eval mode."""

    def train(self: Any, mode: bool = True) -> Any:
        del mode
        return kind.train(self, False)

    return type(kind.__name__, (kind,), {"train": train, "__module__": kind.__module__})
