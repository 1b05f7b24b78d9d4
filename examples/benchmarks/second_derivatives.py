"""Which way through a step's gradient is the cheapest, and which are right?

On a GPT-2 of 4 layers x 256, 16 x 128 tokens of 2,048, one thread: the Hessian's product with a
vector, and every row's derivative along it, in units of one gradient (CPU time, median of five
rounds in which all take turns), and how far off they are from the first.

    double backward            the gradient with its graph, then back through it; what curate does
    ... in closed form         the same with `models.fused` for the activations and the loss
    forward over reverse       the gradient's tangent (`torch.autograd.forward_ad`)
    reverse over forward       the gradient of the tangent (`torch.func`)
    compiled (with --compile)  the first one traced and compiled; minutes, once for each shape

The first, second and fifth also give the gradient, which the rule needs; the others are given it.

    python examples/benchmarks/second_derivatives.py [--compile]

Needs transformers (the extra `hf`).
"""

import argparse
import copy
import time
from collections.abc import Callable

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from curate.models import FlatModel
from curate.models.fused import fuse_layers
from curate.models.fused_loss import cross_entropy

ROWS, LENGTH, VOCABULARY, TURNS = 16, 128, 2048, 5
Found = tuple[Tensor, Tensor]
"""Derivatives by row, shape (n,), and the Hessian product, shape (P,)."""


def torchs(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


class Setting:
    """A model, a batch, where it is and where to."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=256, n_layer=4, n_head=4,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        module = GPT2LMHeadModel._from_config(config, attn_implementation="eager")
        self.plain = FlatModel(module)
        self.fused = FlatModel(fuse_layers(copy.deepcopy(module)))
        self.tokens = torch.randint(VOCABULARY, (ROWS, LENGTH))
        self.theta = self.plain.read()
        self.along = torch.randn_like(self.theta)
        blocked = torch.full((LENGTH, LENGTH), -torch.inf).triu(1)
        self.mask = blocked.expand(ROWS, 1, LENGTH, LENGTH)  # as it is, tracing can follow it

    def losses(self, theta: Tensor, fused: bool = False) -> Tensor:
        model, loss = (self.fused, cross_entropy) if fused else (self.plain, torchs)
        positions = torch.arange(LENGTH)[None]
        output = model.bind(theta, training=True)(
            input_ids=self.tokens, attention_mask=self.mask, position_ids=positions
        )
        logits = output.logits[:, :-1].flatten(0, 1)  # type: ignore[attr-defined]
        return loss(logits, self.tokens[:, 1:].flatten()).view(ROWS, -1).sum(dim=1)

    def gradient(self) -> Tensor:
        theta = self.theta.clone().requires_grad_()
        return torch.autograd.grad(self.losses(theta).sum(), theta)[0]

    def double_backward(self, *, fused: bool = False) -> Found:
        return self.traced(self.theta, torch.ones(ROWS), fused)

    def traced(self, theta: Tensor, weights: Tensor, fused: bool = False) -> Found:
        theta, weights = theta.detach().requires_grad_(), weights.detach().requires_grad_()
        total = (weights * self.losses(theta, fused)).sum()
        (gradient,) = torch.autograd.grad(total, theta, create_graph=True)
        by_row, product = torch.autograd.grad(gradient, [weights, theta], self.along)
        return by_row, product

    def forward_over_reverse(self) -> Found:
        with forward_ad.dual_level():
            theta = forward_ad.make_dual(self.theta.clone().requires_grad_(), self.along)
            losses = self.losses(theta)
            by_row = forward_ad.unpack_dual(losses).tangent
            (gradient,) = torch.autograd.grad(losses.sum(), theta)
            product = forward_ad.unpack_dual(gradient).tangent
        assert by_row is not None
        assert product is not None
        return by_row.detach(), product

    def reverse_over_forward(self) -> Found:
        def along(theta: Tensor) -> tuple[Tensor, Tensor]:
            by_row = torch.func.jvp(self.losses, (theta,), (self.along,))[1]
            return by_row.sum(), by_row

        product, by_row = torch.func.grad(along, has_aux=True)(self.theta)
        return by_row.detach(), product


def main() -> None:
    parser = argparse.ArgumentParser(description="Ways through a step's gradient.")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting()
    ways: dict[str, Callable[[], Found]] = {
        "double backward": setting.double_backward,
        "... in closed form": lambda: setting.double_backward(fused=True),
        "forward over reverse": setting.forward_over_reverse,
        "reverse over forward": setting.reverse_over_forward,
    }
    if arguments.compile:
        begin = time.monotonic()
        ones = torch.ones(ROWS)
        traced = make_fx(lambda theta, weights: setting.traced(theta, weights))
        setting.double_backward()  # what a first call sets up cannot be traced
        compiled = torch.compile(traced(setting.theta, ones))
        compiled(setting.theta, ones)
        print(f"traced and compiled in {time.monotonic() - begin:.0f} s")
        ways["compiled"] = lambda: compiled(setting.theta, ones)
    first = setting.double_backward()
    seconds: dict[str, list[float]] = {"gradient": [], **{name: [] for name in ways}}
    for _ in range(TURNS):
        for name, way in [("gradient", setting.gradient), *ways.items()]:
            begin = time.process_time()
            way()
            seconds[name].append(time.process_time() - begin)
    middle = {name: sorted(own)[TURNS // 2] for name, own in seconds.items()}
    print(f"gradient {middle['gradient']:.2f} s\n\n{'':21} gradients  rows off by  product off by")
    for name, way in ways.items():
        off = [float((a - b).norm() / b.norm()) for a, b in zip(way(), first, strict=True)]
        print(
            f"{name:21} {middle[name] / middle['gradient']:9.2f}  {off[0]:11.0e}  {off[1]:14.0e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
