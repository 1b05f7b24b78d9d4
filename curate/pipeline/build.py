"""From a section of the recipe to a module, its parameter groups, its rule, and a device."""

import fnmatch
from typing import Any

import torch
from torch import nn

from curate import models, rules
from curate.datasets import PairExamples, TokenExamples
from curate.errors import ModelError, OptimizerError, RecipeError
from curate.models import FlatModel
from curate.pipeline.candidates import Candidates
from curate.recipe import Factory, Optimizer, OwnGroup, Pretrained, Recipe
from curate.rules import Rule
from curate.runtime.ranks import ALONE, Ranks


def build_module(recipe: Recipe, data: Candidates) -> nn.Module:
    """The recipe's model, newly initialized from the global RNG."""
    section = recipe.model
    if isinstance(section, Factory):
        module = models.build_model(section.factory, section.arguments)
        return models.freeze_norms(module) if section.freeze_norms else module
    if isinstance(section, Pretrained):
        assert isinstance(data.examples, TokenExamples | PairExamples)
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
            trust=section.trust_remote_code,
        )
    arguments: dict[str, Any] = section.model_dump()
    kind = arguments.pop("kind")
    with models.foreign_code(f"model: {kind}"):  # torch, out of memory
        return models.BUILTIN_MODELS[kind](data.feature_shape, data.outputs, **arguments)


def assign_groups(recipe: Recipe, names: list[str]) -> list[list[str]]:
    """Names of the parameters in the base group, then in each group of the recipe."""
    groups = recipe.training.optimizer.groups
    rest, members = names, list[list[str]]()
    for group in groups:
        matched = [n for n in rest if any(fnmatch.fnmatchcase(n, glob) for glob in group.match)]
        rest = [name for name in rest if name not in matched]
        members.append(matched)
    for k, group in enumerate(groups):
        if not members[k]:
            raise RecipeError(
                f"training.optimizer.groups.{k}.match: {group.match} matches no parameter that an "
                f"earlier group left; there are {', '.join(names)}."
            )
    return [rest, *members]


def param_groups(recipe: Recipe) -> list[Optimizer]:
    """The settings of every param group's optimizer, the base group's first."""
    base = recipe.training.optimizer
    sections: list[Optimizer] = [base]
    for group in base.groups:
        if isinstance(group, OwnGroup):
            sections.append(group)
        else:
            changes = group.model_dump(include={"lr", "weight_decay"}, exclude_none=True)
            sections.append(base.model_copy(update=changes))
    return sections


def build_rule(recipe: Recipe, model: FlatModel) -> Rule:
    """The recipe's optimizers for the param groups of `model`, clipped if it says so.

    Raises:
        RecipeError: an optimizer cannot train the parameters of its group.
    """
    parts = []
    for k, section in enumerate(param_groups(recipe)):
        try:
            kind, shapes = rules.RULES[section.kind], model.group_shapes[k]
            parts.append(rules.make_rule(kind, section.model_dump(), shapes, model.dtype))
        except OptimizerError as error:
            where = f"training.optimizer{f'.groups.{k - 1}' if k else ''}"
            raise RecipeError(f"{where}: {error}") from error
    rule = rules.Grouped(tuple(parts), model.group_sizes) if len(parts) > 1 else parts[0]
    clip_norm = recipe.training.clip_norm
    return rule if clip_norm is None else rules.Clipped(rule, clip_norm)


def choose_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """The device of this rank: `auto` is CUDA where there is one, a different one per rank."""
    if name not in ("auto", "cpu", "cuda"):
        raise ModelError(f"device: must be auto, cpu or cuda but got {name!r}.")
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
