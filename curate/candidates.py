"""The data section of a recipe made concrete: candidates, targets, held-out rows."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from curate import datasets as rooms
from curate.datasets import Classes, Scaling, TensorExamples
from curate.errors import DataError
from curate.influence import Target
from curate.recipe import Recipe, Source, Split


@dataclass(frozen=True)
class Candidates:
    """The rows to choose from, and those to choose by.

    table: the candidates with all their columns, planted noise included.
    examples: the same rows as tensors; `examples.rows` are positions in the source.
    validation: name -> target examples. test: held out from everything but evaluation.
    noisy: where label noise was planted, shape (N,), or None.
    classes: the label of every candidate where labels are classes, shape (N,), or None.
    outputs: what a built-in model has to put out.
    sources: path -> what identifies the data, for provenance.
    """

    table: Dataset
    examples: TensorExamples
    validation: dict[str, TensorExamples]
    test: TensorExamples | None
    noisy: Tensor | None
    classes: np.ndarray[Any, Any] | None
    outputs: int
    sources: dict[str, Any]

    @property
    def targets(self) -> tuple[Target, ...]:
        """The validation sets as targets."""
        return tuple(Target(name, examples) for name, examples in self.validation.items())

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """The shape of one example's features."""
        return tuple(self.examples.features.shape[1:])

    def groups(self, column: str) -> np.ndarray[Any, Any]:
        """The values of a column, for quotas, shape (N,)."""
        rooms.require_columns(self.table, [column], "selection.group_by")
        values = self.table.with_format("numpy")[:][column]
        if values.ndim != 1 or values.dtype.kind not in "biuUOS":
            raise DataError(
                f"selection.group_by: column {column} holds {self.table.features[column]}; "
                "groups must be ints or strings."
            )
        return np.asarray(values.astype(str) if values.dtype.kind == "O" else values)


class _Reader:
    """Turns datasets into examples, all in the same way."""

    def __init__(self, recipe: Recipe, train: Dataset) -> None:
        self.recipe = recipe
        self.dtype = getattr(torch, recipe.training.dtype)
        columns, source = recipe.data.columns, recipe.data.train.path
        self.label = columns.label
        self.classes: Classes | None = None
        if self.label is not None:
            rooms.require_columns(train, [self.label], source)
        exclude = [self.label] if self.label else []
        self.features = rooms.match_features(train, columns.features, exclude, source)
        if self.label is not None and (
            recipe.objective == "classification"
            or (recipe.objective != "regression" and rooms.holds_names(train, self.label))
        ):
            self.classes = rooms.find_classes(train, self.label, source, columns.classes)
            if self.classes.count < 2:
                raise DataError(
                    f"{source}: column {self.label} has one class; there is nothing to learn."
                )

    def examples(self, data: Dataset, source: str, rows: Tensor) -> TensorExamples:
        features = rooms.read_features(
            data, self.features, source,
            dtype=self.dtype, image_shape=self.recipe.data.columns.image_shape,
        )  # fmt: skip
        labels = None
        if self.label is not None and self.classes is not None:
            labels = rooms.read_classes(data, self.label, source, self.classes)
        elif self.label is not None:
            custom = self.recipe.objective != "regression"
            labels = rooms.read_numbers(data, self.label, source, self.dtype, keep_ints=custom)
        return TensorExamples(features, labels, rows, dtype=self.dtype)


def read_candidates(recipe: Recipe) -> Candidates:
    """Read, split, check and convert all data of a recipe.

    Order matters for honesty: splits are drawn first, noise is planted among
    the candidates only, and the scaling is theirs too.

    Raises:
        DataError: names the source, and the column and first row at fault.
    """
    section = recipe.data
    source = _read(section.train)
    reader = _Reader(recipe, source)
    name = section.train.path
    parts = _split(recipe, len(source))
    everything = reader.examples(source, name, torch.arange(len(source)))
    table = source.select(parts["train"].tolist())
    examples = everything.take(parts["train"])

    noisy = None
    if section.label_noise is not None:
        assert reader.label is not None
        assert reader.classes is not None
        planted = rooms.plant_label_noise(
            table, reader.label, name, reader.classes,
            fraction=section.label_noise.fraction, seed=section.label_noise.seed,
        )  # fmt: skip
        table, noisy = planted.data, planted.noisy
        noisy_labels = rooms.read_classes(table, reader.label, name, reader.classes)
        examples = replace(examples, labels=noisy_labels)
    scaling = None
    if section.standardize:
        pixels = everything.features.dtype == torch.uint8
        values = examples.features / 255 if pixels else examples.features
        scaling = Scaling.standardising(values, reader.dtype)

    sources = {name: rooms.describe(source)}

    def other(part: str, where: Source) -> TensorExamples:
        data = _read(where)
        sources[where.path] = rooms.describe(data)
        found = reader.examples(data, where.path, torch.arange(len(data)))
        if found.features.shape[1:] != examples.features.shape[1:]:
            raise DataError(
                f"{where.path}: one row has shape {tuple(found.features.shape[1:])}, but in "
                f"{name} it is {tuple(examples.features.shape[1:])} (data.{part})."
            )
        return found.standardised_by(scaling)

    validation: dict[str, TensorExamples] = {}
    if isinstance(section.validation, Split):
        held = everything.take(parts["validation"]).standardised_by(scaling)
        validation = {"validation": held}
    elif isinstance(section.validation, Source):
        validation = {"validation": other("validation", section.validation)}
    elif section.validation is not None:
        validation = {k: other("validation", s) for k, s in section.validation.items()}
    test = None
    if isinstance(section.test, Split):
        test = everything.take(parts["test"]).standardised_by(scaling)
    elif section.test is not None:
        test = other("test", section.test)

    labels = examples.labels
    return Candidates(
        table=table,
        examples=examples.standardised_by(scaling),
        validation=validation,
        test=test,
        noisy=noisy,
        classes=labels.numpy() if labels is not None and reader.classes else None,
        outputs=reader.classes.count if reader.classes else _width(labels),
        sources=sources,
    )


def _read(source: Source) -> Dataset:
    return rooms.read(source.path, split=source.split, name=source.name)


def _width(labels: Tensor | None) -> int:
    return 1 if labels is None or labels.ndim == 1 else labels.shape[1]


def _split(recipe: Recipe, count: int) -> dict[str, Tensor]:
    """Positions of train, validation and test in the source; train stays in source order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(recipe.data.seed))
    parts = {}
    for part in ("test", "validation"):
        held = getattr(recipe.data, part)
        if isinstance(held, Split):
            size = round(held.fraction * count)
            if size < 1:
                raise DataError(
                    f"data.{part}.fraction: {held.fraction} of {count} rows is none; raise it."
                )
            parts[part], order = order[:size].sort().values, order[size:]
    if len(order) == 0:
        raise DataError(
            f"{recipe.data.train.path}: validation and test take all {count} rows; "
            "nothing is left to choose from."
        )
    return parts | {"train": order.sort().values}
