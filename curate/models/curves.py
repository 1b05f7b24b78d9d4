"""Activations with their first and second derivatives in closed form, elementwise.

The values are torch's. A derivative is a dozen passes over memory; on a CPU they are taken a
block at a time, in the same few buffers, so that what passes between them stays in the cache.
"""

import math
from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 1 << 16
"""Numbers per block and thread: half a dozen float32 vectors of it fit in a core's cache."""

Passes = Callable[..., None]
"""From a block x to what it makes of it: (x, *outputs, a, b), a and b to write in on the way."""


class Curve(NamedTuple):
    """A function f: what makes f(x) and f'(x), and f''(x)."""

    slope: Passes
    bend: Passes


def with_slope(kind: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) and f'(x), f one of `CURVES`. No derivatives of its own.

    Of x in half precision f'(x) is in float32, so that a product with it is rounded once.
    """
    y, slope = _in_blocks(CURVES[kind].slope, x, 2)
    return y.to(x.dtype), slope


def bend(kind: str, x: Tensor) -> Tensor:
    """f''(x), f one of `CURVES`, in float32 at least. No derivatives of its own."""
    (found,) = _in_blocks(CURVES[kind].bend, x, 1)
    return found


def _in_blocks(passes: Passes, given: Tensor, count: int) -> list[Tensor]:
    """The `count` outputs of x, in float32 at least."""
    x = given.to(torch.promote_types(given.dtype, torch.float32)).reshape(-1)
    on_cpu = x.device.type == "cpu"
    block = min(len(x), BLOCK * torch.get_num_threads()) if on_cpu else len(x)
    outputs = [torch.empty_like(x) for _ in range(count)]
    spare = [x.new_empty(block) for _ in range(2)]
    for parts in zip(*(whole.split(block) for whole in (x, *outputs)), strict=True):
        passes(*parts, *(buffer[: len(parts[0])] for buffer in spare))
    return [output.view(given.shape) for output in outputs]


_K, _C = math.sqrt(2 / math.pi), 0.044715


def _inner_tanh(x: Tensor, u: Tensor, t: Tensor) -> None:
    """t = tanh(k (x + c x^3)) and u = k (1 + 3 c x^2), the derivative of what is in it."""
    torch.mul(x, x, out=u)
    torch.mul(u, _K * _C, out=t).add_(_K).mul_(x).tanh_()
    u.mul_(3 * _K * _C).add_(_K)


def _tanh_gelu(x: Tensor, y: Tensor, slope: Tensor, u: Tensor, t: Tensor) -> None:
    """With h = (1 + t) / 2: x h and h + 2 x h (1 - h) u."""
    _inner_tanh(x, u, t)
    h = t.add_(1).mul_(0.5)
    torch.mul(h, x, out=y)
    torch.neg(h, out=slope).add_(1).mul_(u)
    torch.addcmul(h, y, slope, value=2, out=slope)


def _tanh_gelu_bend(x: Tensor, bend: Tensor, u: Tensor, t: Tensor) -> None:
    """(1 - t^2) (2 u - k - x t u^2)."""
    _inner_tanh(x, u, t)
    torch.mul(t, x, out=bend).mul_(u).mul_(u)
    torch.sub(u.mul_(2).sub_(_K), bend, out=bend)
    bend.mul_(t.mul_(t).neg_().add_(1))


def _gelu(x: Tensor, y: Tensor, slope: Tensor, a: Tensor, b: Tensor) -> None:
    """With Phi the distribution function of the normal, phi its density: x Phi, Phi + x phi."""
    below = torch.mul(x, math.sqrt(0.5), out=a).erf_().add_(1).mul_(0.5)
    torch.mul(x, below, out=y)
    torch.addcmul(below, x, _density(torch.mul(x, x, out=b)), out=slope)


def _gelu_bend(x: Tensor, bend: Tensor, a: Tensor, b: Tensor) -> None:
    """phi(x) (2 - x^2)."""
    torch.mul(x, x, out=a)
    torch.neg(a, out=b).add_(2)
    torch.mul(b, _density(a), out=bend)


def _density(square: Tensor) -> Tensor:
    """Of the normal distribution, where the square is this; in its place."""
    return square.mul_(-0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))


def _silu(x: Tensor, y: Tensor, slope: Tensor, s: Tensor, rest: Tensor) -> None:
    """With s the sigmoid of x: x s and s + x s (1 - s)."""
    torch.sigmoid(x, out=s)
    torch.mul(x, s, out=y)
    torch.addcmul(s, y, torch.neg(s, out=rest).add_(1), out=slope)


def _silu_bend(x: Tensor, bend: Tensor, s: Tensor, rest: Tensor) -> None:
    """s (1 - s) (2 + x (1 - 2 s))."""
    torch.sigmoid(x, out=s)
    torch.mul(s, -2, out=bend).add_(1).mul_(x).add_(2).mul_(s)
    bend.mul_(torch.neg(s, out=rest).add_(1))


CURVES = MappingProxyType(
    {
        "gelu_tanh": Curve(_tanh_gelu, _tanh_gelu_bend),
        "gelu": Curve(_gelu, _gelu_bend),
        "silu": Curve(_silu, _silu_bend),
    }
)
