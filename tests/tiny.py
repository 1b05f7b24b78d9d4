"""A tiny task in float64, small enough for oracles that take the long way."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from curate.datasets import TensorExamples
from curate.influence import Target
from curate.models import Classification, FlatModel
from curate.rules import (
    SGD,
    Adafactor,
    Adagrad,
    Adam,
    AdamW,
    Clipped,
    Grouped,
    Muon,
    RMSprop,
    Rule,
    Shapes,
    State,
    initial_state,
)
from curate.trajectory import Step, Task

SHAPES: Shapes = ((5, 4), (5,), (3, 5), (3,))  # of the module below

RULES: dict[str, Any] = {
    "sgd": SGD(),
    "sgd-momentum": SGD(momentum=0.9),
    "sgd-damped": SGD(momentum=0.8, dampening=0.3, weight_decay=0.1),
    "sgd-nesterov": SGD(momentum=0.9, nesterov=True, weight_decay=0.05),
    "adam": Adam(),
    "adam-l2": Adam(betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
    "adamw": AdamW(betas=(0.9, 0.98), eps=1e-7, weight_decay=0.2),
    "rmsprop": RMSprop(alpha=0.9, eps=1e-6, weight_decay=0.1),
    "rmsprop-centered": RMSprop(alpha=0.8, eps=1e-4, momentum=0.7, centered=True),
    "adagrad": Adagrad(lr_decay=0.1, weight_decay=0.1, eps=1e-6),
    "adafactor": Adafactor((), weight_decay=0.1),
    "adafactor-slow": Adafactor((), beta2_decay=-0.5, eps=(1e-4, 0.5), d=1.2),
    "muon": Muon(()),
    "muon-heavy": Muon(
        (), momentum=0.8, nesterov=False, ns_steps=3, adjust_lr_fn="match_rms_adamw"
    ),
}


def examples(count: int = 24, seed: int = 1, dtype: torch.dtype = torch.float64) -> TensorExamples:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (count,), generator=generator)
    return TensorExamples(features.to(dtype), labels, torch.arange(count), dtype=dtype)


def module(dropout: float = 0.0, *, kinked: bool = False) -> nn.Module:
    bend = nn.ReLU() if kinked else nn.GELU()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(4, 5), bend, nn.Dropout(dropout), nn.Linear(5, 3))


def task(
    *,
    dropout: float = 0.0,
    grouped: bool = False,
    dtype: torch.dtype = torch.float64,
    kinked: bool = False,
) -> Task:
    groups = [["0.weight", "3.weight"], ["0.bias", "3.bias"]] if grouped else None
    model = FlatModel(module(dropout, kinked=kinked), groups, dtype=dtype)
    return Task(model, Classification(), examples(dtype=dtype))


def rule_for(
    name: str, groups: Sequence[Shapes] = (SHAPES,), clip: float | None = None
) -> tuple[Rule, tuple[float, ...]]:
    """A rule and its learning rates; in the second of two groups, with default settings.

    What Muon cannot take, having no two dimensions, AdamW has.
    """
    each: list[tuple[Rule, Shapes, float]] = []
    matrices_only = isinstance(RULES[name], Muon)
    for k, (shapes, lr) in enumerate(zip(groups, (0.05, 0.02), strict=False)):
        for left_over, run in groupby(shapes, lambda shape: matrices_only and len(shape) != 2):
            own = tuple(run)
            rule = AdamW() if left_over else shaped(RULES[name], own, default=k > 0)
            each.append((rule, own, lr))
    rules, runs, lrs = zip(*each, strict=True)
    rule = rules[0] if len(rules) == 1 else Grouped(rules, [sum(map(prod, run)) for run in runs])
    return (rule if clip is None else Clipped(rule, clip)), lrs


def shaped(rule: Any, shapes: Shapes, *, default: bool = False) -> Rule:
    """The rule, or one of its kind with default settings, for parameters of these shapes."""
    own = {"shapes": shapes} if hasattr(rule, "shapes") else {}
    made: Rule = type(rule)(**own) if default else replace(rule, **own)
    return made


def steps(
    count: int, lrs: tuple[float, ...] = (0.05,), size: int = 6, micro: int = 0
) -> list[Step]:
    """Steps over the 24 examples: epochs without repetition, weights not all equal to 1."""
    generator = torch.Generator().manual_seed(7)
    order = torch.cat([torch.randperm(24, generator=generator) for _ in range(count)])
    return [
        Step(
            rows=order[t * size : (t + 1) * size],
            weights=0.5 + torch.rand(size, generator=generator, dtype=torch.float64),
            lrs=tuple(lr * (1 - 0.05 * t) for lr in lrs),
            seed=1000 * t,
            micro_batch=micro,
        )
        for t in range(count)
    ]


def targets(dtype: torch.dtype = torch.float64) -> list[Target]:
    return [Target(name, examples(10, seed, dtype)) for name, seed in (("a", 11), ("b", 12))]


def start(task_: Task, rule: Rule) -> State:
    return initial_state(rule, task_.model.read())


def bound(model: FlatModel, theta: Tensor, *, training: bool) -> Callable[..., Any]:
    """The model as a pure function at theta: what the oracles differentiate, twice if need be."""
    model.set_mode(training=training)
    parameters = model.unpack(theta)
    return lambda *args, **kwargs: torch.func.functional_call(
        model.module, parameters, args, kwargs
    )
