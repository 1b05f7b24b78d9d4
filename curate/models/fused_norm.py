"""LayerNorm whose second derivative is in closed form, as `fused` has the activations."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function


class FusedLayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` over one dimension, with weight and bias."""

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = _Norm.apply(input, self.weight, self.bias, self.eps)[0]  # type: ignore[no-untyped-call]
        return y


def fused_norm(layer: nn.LayerNorm) -> FusedLayerNorm | None:
    """The same layer with the same parameters; None if it is one that `FusedLayerNorm` is not."""
    if len(layer.normalized_shape) != 1 or layer.weight is None or layer.bias is None:
        return None
    fused = FusedLayerNorm(layer.normalized_shape, layer.eps, device="meta")
    fused.weight, fused.bias = layer.weight, layer.bias
    return fused.train(layer.training)


class _Norm(Function):
    """xhat w + b, xhat = (x - mean) r, r = (var + eps)^-1/2; mean and r for the way back."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: tuple[Tensor, ...]
    ) -> None:
        _, mean, r = output
        ctx.mark_non_differentiable(mean, r)
        ctx.save_for_backward(*inputs[:3], mean, r)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor, *_: Tensor) -> Any:
        return *_NormBackward.apply(cotangent, *ctx.saved_tensors), None  # type: ignore[no-untyped-call]


class _NormBackward(Function):
    """g -> (P(g w), sum of g xhat, sum of g), P(c) = r (c - mean c - xhat mean(c xhat))."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        cotangent: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, r: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        to_x, to_weight, to_bias = torch.ops.aten.native_layer_norm_backward(
            cotangent, x, x.shape[-1:], mean, r, weight, bias, [True, True, True]
        )
        return to_x, to_weight, to_bias

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        del output
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, by_x: Tensor, by_weight: Tensor, by_bias: Tensor) -> Any:
        """With c = by_x, k = mean(c xhat), a = g w, m = mean(a xhat), S = <c, P(a)>:

        to g       w P(c) + by_weight xhat + by_bias
        to weight  sum of g P(c)
        to x       P(by_weight g - r (c m + a k)) - S r / width * xhat
        """
        wide = ctx.saved_tensors[-1].dtype  # that of r: single where x is in half precision
        g, x, weight, _, mean, r = (saved.to(wide) for saved in ctx.saved_tensors)
        by_x, by_weight, by_bias = (c.to(wide) for c in (by_x, by_weight, by_bias))
        width = x.shape[-1]
        xhat = (x - mean).mul_(r)
        a = g * weight
        k, m = _dot(by_x, xhat) / width, _dot(a, xhat) / width
        pushed = _project(by_x, x, mean, r)
        to_g = torch.addcmul(torch.addcmul(by_bias, xhat, by_weight), pushed, weight)
        rows = tuple(range(x.ndim - 1))
        to_weight = (g * pushed).sum(dim=rows) if rows else g * pushed
        bent = torch.addcmul(g * by_weight, torch.addcmul(by_x * m, a, k), r, value=-1)
        size = _dot(a, pushed) * r / width  # S r / width: P is symmetric
        to_x = torch.addcmul(_project(bent, x, mean, r), xhat, size, value=-1)
        return to_g, to_x, to_weight, None, None, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Row by row."""
    return (a * b).sum(dim=-1, keepdim=True)


def _project(c: Tensor, x: Tensor, mean: Tensor, r: Tensor) -> Tensor:
    """P(c), which is the way back through a norm without weights."""
    parts = [True, False, False]
    found: Tensor = torch.ops.aten.native_layer_norm_backward(
        c, x, x.shape[-1:], mean, r, None, None, parts
    )[0]
    return found
