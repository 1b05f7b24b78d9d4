"""The labels of the candidates as a recipe wants them: noise planted, corrections made."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor

from curate.datasets import (
    ROW,
    SourceExamples,
    correct_labels,
    fingerprint_of,
    plant_label_noise,
    read_corrections,
)
from curate.errors import DataError
from curate.pipeline.reading import Reader, column_uses, read_source
from curate.recipe import Recipe


class Labelled(NamedTuple):
    """The candidates with noise planted and corrections made; see `Candidates`."""

    table: Dataset
    examples: SourceExamples
    noisy: Tensor | None = None
    formerly: Tensor | None = None
    relabelled: dict[str, Any] | None = None
    sources: Mapping[str, Any] = MappingProxyType({})


def labelled(recipe: Recipe, reader: Reader, table: Dataset, examples: SourceExamples) -> Labelled:
    """The candidates as the recipe wants them labelled.

    Raises:
        DataError: a correction is of no candidate, or no class.
    """
    section, label, classes, noisy = recipe.data, reader.label, reader.classes, None
    if section.label_noise is None and section.relabelled is None:
        return Labelled(table, examples)
    assert label is not None
    assert classes is not None
    if section.label_noise is not None:
        noise = section.label_noise.model_dump()
        planted = plant_label_noise(table, label, str(section.train), classes, **noise)
        table, noisy = planted.data, planted.noisy
        examples = examples.with_labels(planted.ids)
    if section.relabelled is None:
        return Labelled(table, examples, noisy)
    source, rows, formerly = str(section.relabelled), examples.rows, examples.labels
    assert formerly is not None
    fixed = read_source(section.relabelled, {**column_uses(recipe), ROW: "number"})
    wanted, ids = read_corrections(fixed, label, source, classes)
    places = torch.searchsorted(rows, wanted).clamp_max(len(rows) - 1)
    if len(unknown := wanted[rows[places] != wanted]):
        raise DataError(
            f"{source}: row {int(unknown[0])} is none of the {len(rows):,} candidates, which are "
            f"among rows {int(rows[0])} to {int(rows[-1])} of {section.train}; rows of validation "
            "and test keep their labels."
        )
    found = correct_labels(table, label, classes, (formerly, noisy), places, ids)
    said = {"file": source, "rows": len(wanted), "changed": found.changed}
    return Labelled(
        found.data,
        examples.with_labels(found.ids),
        found.noisy,
        formerly,
        said,
        {source: fingerprint_of(fixed)},
    )
