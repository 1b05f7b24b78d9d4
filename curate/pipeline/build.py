"""From a section of the recipe to a module, its parameter groups, its rule, and a device."""

import fnmatch
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from curate import models, rules
from curate.datasets import TokenExamples
from curate.errors import ModelError, OptimizerError, RecipeError
from curate.models import FlatModel
from curate.pipeline.candidates import Candidates
from curate.recipe import Factory, Optimizer, OwnGroup, Pretrained, Recipe
from curate.rules import Rule
from curate.runtime.ranks import ALONE, Ranks


def shuffled_batches(pool: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of rows, epoch after epoch without end; the last of an epoch may be shorter."""
    while True:
        yield from pool[torch.randperm(len(pool), generator=generator)].split(size)


def build_module(recipe: Recipe, data: Candidates) -> nn.Module:
    """The recipe's model, newly initialized from the global RNG."""
    section = recipe.model
    if isinstance(section, Factory):
        return models.build_model(section.factory, section.arguments)
    if isinstance(section, Pretrained):
        assert isinstance(data.examples, TokenExamples)
        return models.build_pretrained(
            section.pretrained,
            recipe.objective,
            outputs=data.outputs,
            pad=data.examples.pad,
            from_scratch=section.from_scratch,
            lora=None if section.lora is None else section.lora.model_dump(),
            adapter=section.adapter,
            checkpointing=recipe.training.checkpointing,
            vectorized=recipe.selection.jump == "exact",
        )
    arguments: dict[str, Any] = section.model_dump()
    kind = arguments.pop("kind")
    with models.foreign_code(f"model: {kind}"):  # torch, out of memory
        return models.BUILTIN_MODELS[kind](data.feature_shape, data.outputs, **arguments)


def assign_groups(recipe: Recipe, names: list[str]) -> list[list[str]]:
    """Parameter names of the base group, then of each group of the recipe."""
    groups = recipe.training.optimizer.groups
    members: list[list[str]] = [[] for _ in range(len(groups) + 1)]
    for name in names:
        matching = (
            k
            for k, group in enumerate(groups, start=1)
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in group.match)
        )
        members[next(matching, 0)].append(name)
    for k, group in enumerate(groups):
        if not members[k + 1]:
            raise RecipeError(
                f"training.optimizer.groups.{k}.match: {group.match} matches no parameter that an "
                f"earlier group left; there are {', '.join(names)}."
            )
    return members


def param_groups(recipe: Recipe) -> list[Optimizer]:
    """The settings of every param group's optimizer, the base group's first."""
    base = recipe.training.optimizer
    each: list[Optimizer] = [base]
    for group in base.groups:
        if isinstance(group, OwnGroup):
            each.append(group)
        else:
            changes = group.model_dump(include={"lr", "weight_decay"}, exclude_none=True)
            each.append(base.model_copy(update=changes))
    return each


def base_learning_rates(recipe: Recipe) -> tuple[float, ...]:
    """The learning rate of every group before the schedule, the base group first."""
    return tuple(section.lr for section in param_groups(recipe))


def build_rule(recipe: Recipe, model: FlatModel) -> Rule:
    """The recipe's optimizers for the param groups of `model`, clipped if it says so.

    Raises:
        RecipeError: an optimizer cannot have the parameters that it is given.
    """
    each = []
    for k, section in enumerate(param_groups(recipe)):
        try:
            kind, shapes = rules.RULES[section.kind], model.group_shapes[k]
            each.append(rules.make_rule(kind, section.model_dump(), shapes, model.dtype))
        except OptimizerError as error:
            where = f"training.optimizer{f'.groups.{k - 1}' if k else ''}"
            raise RecipeError(f"{where}: {error}") from error
    rule = rules.Grouped(tuple(each), model.group_sizes) if len(each) > 1 else each[0]
    clip_norm = recipe.training.clip_norm
    return rule if clip_norm is None else rules.Clipped(rule, clip_norm)


def choose_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """`auto` is CUDA where there is one; every rank has a device of its own."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cuda" and not count:
        raise ModelError("--device cuda: this torch sees no CUDA device; use cpu or auto.")
    if name == "cpu" or not count:
        return torch.device("cpu")
    if ranks.size == 1:
        return torch.device("cuda")
    if ranks.local >= count:
        raise ModelError(
            f"there are {count} CUDA devices, too few for more than {count} processes on this "
            "machine, each of which needs one; start fewer, or use --device cpu."
        )
    return torch.device("cuda", ranks.local)
