"""What is trained, and on what loss."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from torch import nn

from curate.models.builtin import ACTIVATIONS, cnn, mlp
from curate.models.check import probe
from curate.models.flat import FlatModel
from curate.models.from_path import (
    as_objective,
    build_model,
    foreign_code,
    load_attribute,
    load_objective,
)
from curate.models.hf import describe_files, quiet
from curate.models.labels import LabelsObjective, find_shift
from curate.models.objectives import Batch, Classification, FunctionObjective, Objective, Regression
from curate.models.pretrained import (
    DEFAULT_LENGTH,
    build_pretrained,
    load_config,
    load_tokenizer,
    most_tokens,
    pad_id,
    save_activations,
    vocabulary_size,
)

BUILTIN_MODELS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType({"mlp": mlp, "cnn": cnn})
OBJECTIVES: Mapping[str, Callable[[], Objective]] = MappingProxyType(
    {
        "classification": Classification,
        "regression": Regression,
        "causal_lm": partial(LabelsObjective, shifts=True),
        "sequence_classification": partial(LabelsObjective, shifts=False),
    }
)

__all__ = [
    "ACTIVATIONS",
    "BUILTIN_MODELS",
    "DEFAULT_LENGTH",
    "OBJECTIVES",
    "Batch",
    "Classification",
    "FlatModel",
    "FunctionObjective",
    "LabelsObjective",
    "Objective",
    "Regression",
    "as_objective",
    "build_model",
    "build_pretrained",
    "describe_files",
    "find_shift",
    "foreign_code",
    "load_attribute",
    "load_config",
    "load_objective",
    "load_tokenizer",
    "most_tokens",
    "pad_id",
    "probe",
    "quiet",
    "save_activations",
    "vocabulary_size",
]
