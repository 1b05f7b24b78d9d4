"""The optimizer and schedule sections."""

import inspect

import pytest
import torch
from pydantic_core import PydanticUndefined

from curate.recipe import check_recipe
from curate.recipe.optimizers import KINDS, AdamWSection
from tests.recipe.base import BASE, refused


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.optimizer.kind=lion", "training.optimizer: kind must be sgd, adam, adamw, rms"),
        ("training.optimizer.momentum=0.9", "training.optimizer.momentum: does not belong here;"),
        ("training.optimizer={kind: adafactor, eps: [0, 1]}", "eps: must be two numbers, the fir"),
        ("training.optimizer={kind: adafactor, eps: [1]}", "eps: must be two numbers, the first"),
        ("training.optimizer={kind: adafactor, d: 0.5}", "optimizer.d: must be greater than or"),
        ("training.optimizer={kind: muon, ns_steps: 100}", "optimizer.ns_steps: must be less"),
        ("training.optimizer={kind: muon, adjust_lr_fn: x}", "adjust_lr_fn: must be 'original'"),
        (
            "training.optimizer.groups=[{match: [a], kind: lion}]",
            "training.optimizer.groups.0: kind must be sgd, adam, adamw, rmsprop, adagrad, "
            "adafactor or muon; no other",
        ),
        ("training.optimizer.groups=[{match: [a], kind: ''}]", "groups.0: kind must be sgd, adam"),
        ("training.optimizer.groups=[{match: [a], kind: null}]", "groups.0: kind must be sgd, ad"),
        ("training.optimizer.kind=null", "training.optimizer: kind must be sgd, adam, adamw"),
        ("training.optimizer.kind=[1]", "training.optimizer: kind must be sgd, adam, adamw"),
        (
            "training.optimizer.groups=[{match: [a], momentum: 0.5}]",
            "training.optimizer.groups.0: momentum needs a `kind` beside it",
        ),
        (
            "training.optimizer.groups=[{match: [a]}, {kind: muon}]",
            "training.optimizer.groups.1.match: is required",
        ),
        ("training.optimizer.groups=[{match: [a], kind: sgd}]", "groups.0.lr: is required"),
        (
            "training.optimizer.groups=[{match: [a], kind: muon, groups: []}]",
            "training.optimizer.groups.0.groups: does not belong here; remove it",
        ),
        (
            "training.optimizer.groups=[{match: [a], kind: adam, amsgrad: true}]",
            "training.optimizer.groups.0: amsgrad is not modeled",
        ),
        ("training.optimizer.groups=[{match: [a], kind: muon, alpha: 1}]", "alpha: does not belo"),
        ("training.optimizer.amsgrad=true", "training.optimizer: amsgrad is not modeled"),
        ("training.optimizer.maximize=true", "training.optimizer: maximize is not modeled"),
        ("training.optimizer.lr=-1", "training.optimizer.lr: must be greater than 0 but got -1"),
        ("training.optimizer.lr=.nan", "training.optimizer.lr: must be a finite number"),
        ("training.optimizer.eps=0", "training.optimizer.eps: must be greater than 0"),
        ("training.optimizer.betas=[0.9]", "training.optimizer.betas: must have at least 2 item"),
        ("training.optimizer={kind: sgd}", "training.optimizer.lr: is required"),
        ("training.optimizer={kind: sgd, lr: 1, nesterov: true}", "nesterov needs a momentum"),
        ("training.schedule.kind=step", "training.schedule.kind: must be 'constant', 'linear'"),
    ],
)
def test_mistakes_are_named_by_their_key(override: str, message: str) -> None:
    assert message in refused(override)


def test_defaults_are_those_of_torch() -> None:
    for kind, section in KINDS.items():
        optimizer = getattr(torch.optim, section.__name__.removesuffix("Section"))
        parameters = inspect.signature(optimizer).parameters
        made = section.model_validate({"kind": kind, "lr": 0.5})
        for name, value in made.model_dump(exclude={"kind", "lr"}).items():
            default = parameters[name].default
            if (kind, name) == ("muon", "adjust_lr_fn"):
                default = default or "original"
            assert value == (list(default) if isinstance(default, tuple) else default), name
        if (lr := section.model_fields["lr"].default) is not PydanticUndefined:
            assert lr == parameters["lr"].default


def test_the_optimizer_is_adamw_if_none_is_named() -> None:
    optimizer = check_recipe(BASE).training.optimizer
    assert isinstance(optimizer, AdamWSection)
    assert optimizer == check_recipe(BASE, ["training.optimizer={lr: 1e-3}"]).training.optimizer
