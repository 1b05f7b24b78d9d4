"""Where candidates and targets come from."""

from curate.datasets.batches import (
    BatchExamples,
    batch_length,
    leaves,
    map_leaves,
    mapped_tensors,
    take,
    to_device,
)
from curate.datasets.columns import match_features, read_features, require_columns
from curate.datasets.examples import Examples, Scaling, TensorExamples
from curate.datasets.labels import (
    Classes,
    PlantedNoise,
    find_classes,
    holds_names,
    plant_label_noise,
    read_classes,
    read_numbers,
)
from curate.datasets.readers import describe, read

__all__ = [
    "BatchExamples",
    "Classes",
    "Examples",
    "PlantedNoise",
    "Scaling",
    "TensorExamples",
    "batch_length",
    "describe",
    "find_classes",
    "holds_names",
    "leaves",
    "map_leaves",
    "mapped_tensors",
    "match_features",
    "plant_label_noise",
    "read",
    "read_classes",
    "read_features",
    "read_numbers",
    "require_columns",
    "take",
    "to_device",
]
