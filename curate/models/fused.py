"""Functions whose second derivative costs autograd dozens of passes over memory.

The same values and derivatives as torch's, in closed form: the activations and norms of models
that are built here, and the loss of language models. They can be differentiated twice, which is
what scoring does, and vectorised (`torch.func.vmap`).
"""

import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from curate.datasets import IGNORED
from curate.models.fused_norm import fused_norm


class Curve(NamedTuple):
    """An elementwise function: f(x), cotangent * f'(x), and f''(x)."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]
    bend: Callable[[Tensor], Tensor]


def _tanh_gelu_bend(x: Tensor) -> Tensor:
    """With t = tanh(k (x + c x^3)) and u = k (1 + 3 c x^2): (1 - t^2) (2 u - k - x t u^2)."""
    k, c = math.sqrt(2 / math.pi), 0.044715
    square = x * x
    t = (square * (k * c)).add_(k).mul_(x).tanh_()
    u = square.mul_(3 * k * c).add_(k)
    flat = torch.addcmul(torch.ones((), dtype=x.dtype, device=x.device), t, t, value=-1)
    return torch.sub(u * 2 - k, t.mul_(x).mul_(u).mul_(u)).mul_(flat)


def _gelu_bend(x: Tensor) -> Tensor:
    """phi(x) (2 - x^2), phi the density of the normal distribution."""
    square = x * x
    return (square * -0.5).exp_().mul_(1 / math.sqrt(2 * math.pi)).mul_(2 - square)


def _silu_bend(x: Tensor) -> Tensor:
    """s (1 - s) (2 + x (1 - 2 s)), s the sigmoid of x."""
    s = x.sigmoid()
    return (1 - 2 * s).mul_(x).add_(2).mul_(s).mul_(1 - s)


CURVES = MappingProxyType(
    {
        "gelu_tanh": Curve(
            lambda x: F.gelu(x, approximate="tanh"),
            lambda g, x: torch.ops.aten.gelu_backward(g, x, approximate="tanh"),
            _tanh_gelu_bend,
        ),
        "gelu": Curve(F.gelu, torch.ops.aten.gelu_backward, _gelu_bend),
        "silu": Curve(F.silu, torch.ops.aten.silu_backward, _silu_bend),
    }
)


class _Curved(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, kind: str) -> Tensor:
        return CURVES[kind].value(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        del output
        x, ctx.kind = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return _CurvedBackward.apply(cotangent, x, ctx.kind), None  # type: ignore[no-untyped-call]


class _CurvedBackward(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(cotangent: Tensor, x: Tensor, kind: str) -> Tensor:
        return CURVES[kind].slope(cotangent, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
        del output
        cotangent, x, ctx.kind = inputs
        ctx.save_for_backward(cotangent, x)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor, None]:
        cotangent, x = ctx.saved_tensors
        curve = CURVES[ctx.kind]
        return curve.slope(outer, x), curve.bend(x) * cotangent * outer, None


class Activation(nn.Module):
    """One of `CURVES` as a layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Curved.apply(x, self.kind)  # type: ignore[no-untyped-call]
        return y

    def extra_repr(self) -> str:
        return self.kind


NAMED = MappingProxyType(
    {
        "SiLU": "silu",
        "SiLUActivation": "silu",
        "GELUActivation": "gelu",
        "NewGELUActivation": "gelu_tanh",
        "GELUTanh": "gelu_tanh",
        "PytorchGELUTanh": "gelu_tanh",
    }
)
"""Which of `CURVES` an activation is, by the name of its class."""


def fuse_layers(module: nn.Module) -> nn.Module:
    """Put a twin of its own in the place of every GELU, SiLU and LayerNorm of a model.

    Returns the model. Names and parameters stay what they were.
    """
    for parent in module.modules():
        for name, child in parent.named_children():
            twin = fused_norm(child) if type(child) is nn.LayerNorm else _activation(child)
            if twin is not None:
                setattr(parent, name, twin)
    return module


def _activation(layer: nn.Module) -> Activation | None:
    """The twin of an activation, if it has one: torch's, and transformers' by their names."""
    if isinstance(layer, nn.GELU):
        return Activation("gelu_tanh" if layer.approximate == "tanh" else "gelu")
    kind = NAMED.get(type(layer).__name__)
    return None if kind is None else Activation(kind)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every row of logits, shape (n, classes), with its label, shape (n,).

    0 where the label is -100.
    """
    losses: Tensor
    losses, _ = _CrossEntropy.apply(logits, labels)  # type: ignore[no-untyped-call]
    return losses


class _CrossEntropy(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        total = logits.logsumexp(dim=-1)
        return (total - _picked(logits, labels)).masked_fill(labels == IGNORED, 0), total

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]
    ) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor, _: Tensor) -> tuple[Tensor, None]:
        return _CrossEntropyBackward.apply(cotangent, *ctx.saved_tensors), None  # type: ignore[no-untyped-call]


class _CrossEntropyBackward(Function):
    """(softmax(z) - onehot) * cotangent."""

    generate_vmap_rule = True

    @staticmethod
    def forward(cotangent: Tensor, logits: Tensor, labels: Tensor, total: Tensor) -> Tensor:
        counted = cotangent.masked_fill(labels == IGNORED, 0).unsqueeze(-1)
        one = labels.clamp(min=0).unsqueeze(-1)
        return (_softmax(logits, total) * counted).scatter_add_(-1, one, -counted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del output
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor, None, None]:
        cotangent, logits, labels, total = ctx.saved_tensors
        ignored = labels == IGNORED
        p = _softmax(logits, total)
        pushed = p * outer
        mean = pushed.sum(dim=-1)
        to_cotangent = (mean - _picked(outer, labels)).masked_fill(ignored, 0)
        counted = cotangent.masked_fill(ignored, 0).unsqueeze(-1)
        to_logits = torch.addcmul(pushed, p, mean.unsqueeze(-1), value=-1).mul_(counted)
        return to_cotangent, to_logits, None, None


def _picked(rows: Tensor, labels: Tensor) -> Tensor:
    return rows.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)


def _softmax(logits: Tensor, total: Tensor) -> Tensor:
    return (logits - total.unsqueeze(-1)).exp_()
