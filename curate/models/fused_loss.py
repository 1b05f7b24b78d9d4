"""Cross-entropy whose second derivative is in closed form, as `fused` has the activations."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from curate.datasets import IGNORED


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every row of logits, shape (n, classes), with its label, shape (n,).

    0 where the label is -100. Of the logits, only their softmax is kept for the way back.
    """
    losses: Tensor
    losses, _ = _CrossEntropy.apply(logits, labels)  # type: ignore[no-untyped-call]
    return losses


class _CrossEntropy(Function):
    """Losses and p, the softmax of the logits, by which the way back is differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        largest = logits.amax(dim=-1, keepdim=True)
        p = (logits - largest).exp_()
        total = p.sum(dim=-1, keepdim=True)
        losses = (total.log() + largest).squeeze(-1) - _picked(logits, labels)
        return losses.masked_fill(labels == IGNORED, 0), p.div_(total)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]
    ) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[1], output[1])

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor | None, by_p: Tensor | None) -> tuple[Any, None]:
        labels, p = ctx.saved_tensors
        to_logits: Tensor | None = None
        if by_loss is not None:
            to_logits = _CrossEntropyBackward.apply(by_loss, p, labels)  # type: ignore[no-untyped-call]
        if by_p is not None:
            bent = torch._softmax_backward_data(by_p, p, -1, p.dtype)
            to_logits = bent if to_logits is None else to_logits + bent
        return to_logits, None


class _CrossEntropyBackward(Function):
    """(p - onehot) * cotangent."""

    generate_vmap_rule = True

    @staticmethod
    def forward(cotangent: Tensor, p: Tensor, labels: Tensor) -> Tensor:
        counted = _counted(cotangent, labels)
        return (p * counted).scatter_add_(-1, labels.clamp(min=0).unsqueeze(-1), -counted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del output
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor, None]:
        cotangent, p, labels = ctx.saved_tensors
        by_row = (p * outer).sum(dim=-1) - _picked(outer, labels)
        to_cotangent = by_row.masked_fill(labels == IGNORED, 0)
        return to_cotangent, outer * _counted(cotangent, labels), None


def _picked(rows: Tensor, labels: Tensor) -> Tensor:
    return rows.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)


def _counted(cotangent: Tensor, labels: Tensor) -> Tensor:
    """The cotangents of losses, 0 where there is no label, to multiply rows by."""
    return cotangent.masked_fill(labels == IGNORED, 0).unsqueeze(-1)
