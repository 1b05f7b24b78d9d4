"""What is trained, and on what loss."""

from curate.models.builtin import ACTIVATIONS, BUILTIN_MODELS
from curate.models.check import require_trainable
from curate.models.flat import FlatModel
from curate.models.from_path import FOREIGN, build_model, foreign_code, load_attribute, one_line
from curate.models.hf import describe_files, quiet
from curate.models.norms import freeze_norms
from curate.models.objectives.base import (
    Batch,
    Objective,
    class_losses,
    losses_and_metrics,
)
from curate.models.objectives.classification import Classification
from curate.models.objectives.function import FunctionObjective, as_objective, load_objective
from curate.models.objectives.goal import load_goal
from curate.models.objectives.labels import (
    CausalLM,
    LabelsObjective,
    SequenceClassification,
    find_shift,
)
from curate.models.objectives.preference import Preference, log_probabilities
from curate.models.objectives.regression import Regression
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

__all__ = [
    "ACTIVATIONS",
    "BUILTIN_MODELS",
    "DEFAULT_LENGTH",
    "FOREIGN",
    "Batch",
    "CausalLM",
    "Classification",
    "FlatModel",
    "FunctionObjective",
    "LabelsObjective",
    "Objective",
    "Preference",
    "Regression",
    "SequenceClassification",
    "as_objective",
    "build_model",
    "build_pretrained",
    "class_losses",
    "describe_files",
    "find_shift",
    "foreign_code",
    "freeze_norms",
    "load_attribute",
    "load_config",
    "load_goal",
    "load_objective",
    "load_tokenizer",
    "log_probabilities",
    "losses_and_metrics",
    "most_tokens",
    "one_line",
    "pad_id",
    "quiet",
    "require_trainable",
    "save_activations",
    "vocabulary_size",
]
