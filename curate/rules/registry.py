"""Every rule by its name in recipes, and how settings make one."""

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

import torch

from curate.rules.adafactor import Adafactor
from curate.rules.adagrad import Adagrad
from curate.rules.adam import Adam, AdamW
from curate.rules.base import Rule, Shapes
from curate.rules.muon import Muon
from curate.rules.rmsprop import RMSprop
from curate.rules.sgd import SGD

RULES: Mapping[str, type[Rule]] = MappingProxyType(
    {
        "sgd": SGD,
        "adam": Adam,
        "adamw": AdamW,
        "rmsprop": RMSprop,
        "adagrad": Adagrad,
        "adafactor": Adafactor,
        "muon": Muon,
    }
)


def make_rule(kind: Any, settings: Mapping[str, Any], shapes: Shapes, dtype: torch.dtype) -> Rule:
    """A rule of class `kind` for parameters of these shapes and this dtype.

    Args:
        settings: a value for each of the rule's fields, by the names of `torch.optim`; keys
            that are not fields are ignored. A None within a pair stands for the eps of the
            dtype, as in `torch.optim.Adafactor`.
    """
    values = {field.name: settings[field.name] for field in fields(kind) if field.name != "shapes"}
    for name, value in values.items():
        if isinstance(value, list | tuple):
            values[name] = tuple(torch.finfo(dtype).eps if v is None else float(v) for v in value)
    if "shapes" in kind.__dataclass_fields__:
        values["shapes"] = shapes
    rule: Rule = kind(**values)
    return rule
