"""What is trained, and on what loss."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from curate.models.builtin import ACTIVATIONS, cnn, mlp
from curate.models.flat import BoundModel, FlatModel, differentiable_attention
from curate.models.from_path import (
    as_objective,
    build_model,
    foreign_code,
    load_attribute,
    load_objective,
)
from curate.models.labels import LabelsObjective, find_shift
from curate.models.objectives import Batch, Classification, FunctionObjective, Objective, Regression
from curate.models.probe import probe

BUILTIN_MODELS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType({"mlp": mlp, "cnn": cnn})
OBJECTIVES: Mapping[str, Callable[[], Objective]] = MappingProxyType(
    {"classification": Classification, "regression": Regression}
)

__all__ = [
    "ACTIVATIONS",
    "BUILTIN_MODELS",
    "OBJECTIVES",
    "Batch",
    "BoundModel",
    "Classification",
    "FlatModel",
    "FunctionObjective",
    "LabelsObjective",
    "Objective",
    "Regression",
    "as_objective",
    "build_model",
    "differentiable_attention",
    "find_shift",
    "foreign_code",
    "load_attribute",
    "load_objective",
    "probe",
]
