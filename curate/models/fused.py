"""Layers whose second derivative costs autograd dozens of passes over memory, put right.

The same values and derivatives as torch's, in closed form, for the activations and norms of
models that are built here. They can be differentiated twice, which is what scoring does, and
vectorised (`torch.func.vmap`).
"""

from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.autograd import Function

from curate.models.curves import bend, with_slope
from curate.models.fused_norm import fused_norm


class _Curved(Function):
    """f(x) and f'(x), by which the way back is differentiated."""

    @staticmethod
    def forward(x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        return with_slope(kind, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.kind = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, output[1])

    @staticmethod
    def backward(ctx: Any, by_value: Tensor | None, by_slope: Tensor | None) -> tuple[Any, None]:
        x, slope = ctx.saved_tensors
        to_x = None if by_value is None else by_value * slope
        if by_slope is not None:
            bent = _Bend.apply(x, ctx.kind) * by_slope  # type: ignore[no-untyped-call]
            to_x = bent if to_x is None else to_x + bent
        return to_x, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], x: Tensor, kind: str) -> Any:
        del info
        return _Curved.apply(x, kind), (in_dims[0], in_dims[0])  # type: ignore[no-untyped-call]


class _Bend(Function):
    """f''(x). That it has no derivative is said by torch, should one be asked for."""

    @staticmethod
    def forward(x: Tensor, kind: str) -> Tensor:
        return bend(kind, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], x: Tensor, kind: str) -> Any:
        del info
        return _Bend.apply(x, kind), in_dims[0]  # type: ignore[no-untyped-call]


class Activation(nn.Module):
    """One of `CURVES` as a layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Curved.apply(x, self.kind)[0]  # type: ignore[no-untyped-call]
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
