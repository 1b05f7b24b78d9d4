"""Cheap features of rows, of the model that is trained: forward passes and its last layer.

The gradient of a row's loss by the weights of the last layer is sum_t d_t h_t', with h_t what goes
into it at place t and d_t the loss's slope along what comes out; both are there after a forward
pass. Influence is linear in a row's gradient.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from curate.models.flat import FlatModel
from curate.models.objectives.base import Batch, Objective

WIDE, HIGH = 32, 16
"""Numbers that are left of what goes into the last layer, and of what comes out of it."""
SEED = 11


@dataclass
class Passage:
    """What went through the last layer in a forward pass, call by call.

    entered: what went in, shape (..., H). left: what came out, shape (..., O), with gradients.
    """

    entered: list[Tensor] = field(default_factory=list)
    left: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class LastFeatures:
    """Of rows at some weights, each of shape (n, .), float32, on the CPU.

    losses: loss per term, shape (n,). sizes: terms, (n,). slope: norm of the loss's gradient by
    what the last layer gives, (n,). gradient: by its weights, projected at random where it is
    large, (n, O' H'). inner: what goes into the layer, a mean over places that count, (n, H');
    outer: the slopes along what comes out, a sum, (n, O'). The last four are None without it.
    """

    losses: Tensor
    sizes: Tensor
    slope: Tensor | None = None
    gradient: Tensor | None = None
    inner: Tensor | None = None
    outer: Tensor | None = None


def last_layer(model: FlatModel, objective: Objective, batch: Batch) -> str | None:
    """The name of the layer with a matrix of weights that works last in a forward pass.

    None if there is none, if it does not lead to the losses, or if what goes through it does not
    have a row for every example.
    """
    order, handles = list[nn.Module](), []
    for layer in model.module.modules():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(layer, nn.Embedding):
            handles.append(layer.register_forward_hook(lambda layer, *_: order.append(layer)))
    try:
        with torch.no_grad(), model.at(model.read(), training=False) as module:
            objective.losses(module, batch)
    finally:
        for handle in handles:
            handle.remove()
    names = {layer: name for name, layer in model.module.named_modules()}
    if not order:
        return None
    with (
        model.at(model.read(), training=False) as module,
        model.computing(),
        _watching(order[-1]) as passage,
    ):
        losses = objective.losses(module, batch)
    found = [*passage.entered, *passage.left]
    if not losses.requires_grad or any(x.ndim < 2 or len(x) != len(losses) for x in found):
        return None
    slopes = torch.autograd.grad(losses.sum(), passage.left, allow_unused=True)
    return None if any(slope is None for slope in slopes) else names[order[-1]]


def last_features(
    model: FlatModel, objective: Objective, batch: Batch, theta: Tensor, layer: str | None
) -> LastFeatures:
    """Features of the rows of a batch at theta, in eval mode. Cost: a forward pass, and no more.

    layer: as `last_layer` found it.
    """
    if layer is None:
        with model.at(theta, training=False) as module, model.computing(), torch.no_grad():
            losses = objective.losses(module, batch)
        return _without(losses, objective.sizes(batch))
    watched = model.module.get_submodule(layer)
    with (
        model.at(theta, training=False) as module,
        model.computing(),
        _watching(watched) as passage,
    ):
        losses = objective.losses(module, batch)
    slopes = torch.autograd.grad(losses.sum(), passage.left)
    parts = [_parts(*pair) for pair in zip(passage.entered, slopes, strict=True)]
    square, gradient, inner, outer = (sum(own).cpu() for own in zip(*parts, strict=True))
    plain = _without(losses.detach(), objective.sizes(batch))
    return LastFeatures(plain.losses, plain.sizes, square.sqrt(), gradient, inner, outer)


@torch.no_grad()
def _parts(entered: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of one call: the squared norm of its slopes, and `gradient`, `inner` and `outer`.

    entered: shape (n, ..., H). slope: (n, ..., O).
    """
    count = len(slope)
    h = _projected(entered.float(), WIDE).view(count, -1, min(WIDE, entered.shape[-1]))
    d = _projected(slope.float(), HIGH).view(count, -1, min(HIGH, slope.shape[-1]))
    square = slope.float().square().flatten(1).sum(dim=1)
    counted = d.abs().sum(dim=2, keepdim=True) > 0  # not where nothing is to be learned
    inner = (h * counted).sum(dim=1) / counted.sum(dim=1).clamp_min(1)
    return square, torch.einsum("nto,nth->noh", d, h).flatten(1), inner, d.sum(dim=1)


def _without(losses: Tensor, sizes: Tensor) -> LastFeatures:
    sizes = sizes.to(losses)
    return LastFeatures((losses / sizes.clamp_min(1)).float().cpu(), sizes.float().cpu())


@contextmanager
def _watching(layer: nn.Module) -> Iterator[Passage]:
    """Note what goes through a layer, and take gradients only of what comes after it."""
    passage = Passage()

    def see(_: nn.Module, entered: tuple[Tensor, ...], left: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        passage.entered.append(entered[0].detach())
        passage.left.append(left.detach().requires_grad_())
        return passage.left[-1]

    handle = layer.register_forward_hook(see)
    try:
        with torch.no_grad():
            yield passage
    finally:
        handle.remove()


def _projected(x: Tensor, most: int) -> Tensor:
    """The last dimension cut to at most so many numbers by a fixed random projection."""
    width = x.shape[-1]
    if width <= most:
        return x
    generator = torch.Generator().manual_seed(SEED)
    matrix = torch.randn(width, most, generator=generator) / most**0.5
    projected: Tensor = x @ matrix.to(x.device)
    return projected
