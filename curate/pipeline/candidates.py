"""The data section of a recipe made concrete: candidates, targets, held-out rows."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeGuard

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from curate.datasets import (
    PairExamples,
    Scaling,
    SourceExamples,
    TensorExamples,
    TokenExamples,
    fingerprint_of,
    pick_rows,
    refuse_nulls,
    require_columns,
)
from curate.errors import DataError
from curate.influence import Groups, Target
from curate.models import Objective, describe_files
from curate.pipeline.labelling import labelled
from curate.pipeline.reading import Known, column_uses, find_reader, read_source
from curate.recipe import Pretrained, Recipe, Source, Split
from curate.recipe.target import TargetSection
from curate.runtime.large import large, released
from curate.selection import Array

AT_ONCE = 1024
"""Rows of a target whose terms are counted together."""
HALVING = 2
"""Seed by which validation sets are halved; `tune` divides them by another."""


@dataclass(frozen=True)
class Candidates:
    """The rows to choose from, and the rows to choose by.

    table: the candidates with all their columns, planted noise included.
    examples: these rows as tensors; `examples.rows` are positions in the source.
    validation: name -> target examples. test: held out from everything but evaluation.
    noisy: where label noise was planted, shape (N,), or None.
    classes: the label of every candidate where labels are classes, shape (N,), or None.
    outputs: how many a built-in model needs.
    target_weights: of the validation sets in the mean over them, the largest 1.
    sources: source -> what identifies the data, and the files of a model, for provenance.
    left_out: source -> how many of its texts are shorter than `data.min_length`, if that is given.
    known: what they were read by.
    goal: what is to be low on the targets; the loss of training if None. groupings: target -> the
    values of the column that it is balanced by, of every row of its source; worst: see `Groups`.
    undivided: of a half, the terms of every group in the whole target.
    formerly: the labels of the candidates before corrections, shape (N,), and relabelled: whose
    and how many; None without corrections.
    """

    table: Dataset
    examples: SourceExamples
    validation: dict[str, SourceExamples]
    test: SourceExamples | None
    noisy: Tensor | None
    classes: Array | None
    outputs: int
    target_weights: dict[str, float]
    sources: dict[str, Any]
    left_out: dict[str, int]
    known: Known
    goal: Objective | None = None
    groupings: dict[str, Array] = field(default_factory=dict)
    undivided: dict[str, Tensor] | None = None
    worst: float = 0.0
    formerly: Tensor | None = None
    relabelled: dict[str, Any] | None = None

    @classmethod
    def unlabeled(cls, examples: SourceExamples, outputs: int, known: Known) -> "Candidates":
        """Rows to be looked at by a model of so many outputs, and nothing else."""
        return cls(
            table=Dataset.from_dict({}),
            examples=examples,
            validation={},
            test=None,
            noisy=None,
            classes=None,
            outputs=outputs,
            target_weights={},
            sources={},
            left_out={},
            known=known,
        )

    def only(self, positions: Array) -> "Candidates":
        """Some of the candidates, by position, shape (n,), ascending; all else as it is."""
        some = torch.from_numpy(positions)
        return replace(
            self,
            table=self.table.select(positions),
            examples=self.examples.take(some),
            noisy=None if self.noisy is None else self.noisy[some],
            classes=None if self.classes is None else self.classes[positions],
            formerly=None if self.formerly is None else self.formerly[some],
        )

    @property
    def targets(self) -> tuple[Target, ...]:
        """The validation sets as targets."""
        return tuple(
            Target(
                name,
                examples,
                self.target_weights[name],
                self.goal,
                self._groups_of(name),
            )
            for name, examples in self.validation.items()
        )

    def _groups_of(self, name: str) -> Groups | None:
        """The groups of a target; in a half of one a row counts as in the whole.

        The worst group is that of the half, since it is not known which that of the whole is.
        """
        if name not in self.groupings:
            return None
        of, own = self._terms_of(name)
        if self.worst or self.undivided is None:
            return Groups(of, own, self.worst)
        return Groups(of, self.undivided[name] * self._share_of(name))

    def _terms_of(self, name: str) -> tuple[Tensor, Tensor]:
        """The group of every row of a target, and the terms in the losses of every group."""
        examples, values = self.validation[name], self.groupings[name]
        names, codes = np.unique(values[examples.rows.numpy()], return_inverse=True)
        of = torch.from_numpy(codes)  # a half has rows of all groups
        if self.goal is None:
            ones = torch.ones(len(examples))
            sizes = examples.terms() if _counts_tokens(examples) else ones
        else:
            cpu = torch.device("cpu")
            batches = (examples.batch(rows, cpu) for rows in examples.chunks(AT_ONCE))
            sizes = torch.cat([self.goal.sizes(batch) for batch in batches])
        return of, torch.zeros(len(names), dtype=torch.float64).index_add_(0, of, sizes.double())

    def _share_of(self, name: str) -> float:
        """What the rows of a half weigh in the mean over the groups of the whole target."""
        assert self.undivided is not None
        return float((self._terms_of(name)[1] / self.undivided[name]).mean())

    @property
    def target_rows(self) -> int:
        """Rows of all validation sets together."""
        return sum(len(examples) for examples in self.validation.values())

    @cached_property
    def halves(self) -> tuple["Candidates", "Candidates"]:
        """The candidates with one half of every validation set, and with the other half.

        Raises:
            DataError: a validation set has fewer than two rows.
        """
        one, other = divide(self.validation, 0.5, HALVING)
        for name, values in self.groupings.items():
            examples = self.validation[name]
            groups = values[examples.rows.numpy()]
            names, codes, counts = np.unique(groups, return_inverse=True, return_counts=True)
            if counts.min() < 2:
                raise DataError(
                    f"target.balance: {names[counts.argmin()]} is one row of {name}, too few to "
                    "score by one half of the rows and judge by the other; add rows of it."
                )
            drawn = np.random.default_rng(HALVING).permutation(len(examples))
            order = torch.from_numpy(drawn[np.argsort(codes[drawn], kind="stable")])
            one[name] = examples.take(order[1::2].sort().values)
            other[name] = examples.take(order[::2].sort().values)
        whole = {name: self._terms_of(name)[1] for name in self.groupings}
        return (
            replace(self, validation=one, undivided=whole),
            replace(self, validation=other, undivided=whole),
        )

    def half_shares(self) -> Array:
        """The share that each half has of every validation set's terms, shape (2, V), sums 1."""
        terms = np.array(
            [
                [
                    half._share_of(name) if name in self.groupings else _terms(examples)
                    for name, examples in half.validation.items()
                ]
                for half in self.halves
            ]
        )
        shares: Array = terms / terms.sum(axis=0)
        return shares

    @property
    def half_targets(self) -> tuple[Target, ...]:
        """The targets of one half, then those of the other.

        The mean over them by their weights is that over the whole `targets`.
        """
        return tuple(
            replace(target, weight=target.weight * float(share))
            for half, shares in zip(self.halves, self.half_shares(), strict=True)
            for target, share in zip(half.targets, shares, strict=True)
        )

    @cached_property
    def tokens(self) -> Array | None:
        """How many tokens every candidate's loss is a sum over, shape (N,).

        Padding, prompts and a text's first token are not counted. None where every
        example counts once.
        """
        if not _counts_tokens(self.examples):
            return None
        terms: Array = self.examples.terms().numpy()
        return terms

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """The shape of one example's features."""
        assert isinstance(self.examples, TensorExamples)
        return tuple(self.examples.features.shape[1:])

    def truncated(self) -> dict[str, int]:
        """How many texts of each part were cut at their end; empty without texts."""
        parts = {"train": self.examples, **self.validation}
        if self.test is not None:
            parts["test"] = self.test
        return {
            name: int(part.cut.sum())
            for name, part in parts.items()
            if isinstance(part, TokenExamples | PairExamples)
        }

    def groups(self, column: str) -> Array:
        """The values of a column, for quotas, shape (N,)."""
        return group_values(self.table, column, "selection.group_by")


def group_values(table: Dataset, column: str, source: str) -> Array:
    """The values of a column of ints or strings, shape (N,); source: for messages."""
    require_columns(table, [column], source)
    values = table.select_columns([column]).with_format("numpy")[:][column]
    if values.ndim != 1 or values.dtype.kind not in "biuUOS":
        raise DataError(
            f"{source}: column {column} holds {table.features[column]}; groups must be ints or "
            "strings."
        )
    return np.asarray(values.astype(str) if values.dtype.kind == "O" else values)


def read_candidates(recipe: Recipe) -> Candidates:
    """Read, split, check and convert all data of a recipe.

    Order matters for honesty: splits are drawn first, noise is planted among
    the candidates only, and the scaling is theirs too.

    Raises:
        DataError: names the source, and the column and first row at fault.
    """
    section = recipe.data
    uses = column_uses(recipe)
    source = read_source(section.train, uses)
    reader = find_reader(recipe, source)
    name = str(section.train)
    everything = reader.examples(source, name)
    parts = _split(recipe, len(everything))
    everywhere = len(parts["train"]) == len(everything)
    examples = everything if everywhere else everything.take(parts["train"])
    own = labelled(recipe, reader, pick_rows(source, examples.rows), examples)
    examples = own.examples
    scale = _scaling(examples) if section.standardize else lambda part: part
    sources, used = {name: fingerprint_of(source), **own.sources}, {name: len(everything)}
    tables = dict[str, Dataset]()

    def other(part: str, where: Source) -> SourceExamples:
        data = read_source(where, uses)
        held = reader.examples(data, str(where))
        sources[str(where)], used[str(where)] = fingerprint_of(data), len(held)
        tables[str(where)] = data
        _refuse_other_shape(held, examples, f"{where} (data.{part})", name)
        return scale(held)

    def part(name: str, held: Split | Source) -> SourceExamples:
        return scale(everything.take(parts[name])) if isinstance(held, Split) else other(name, held)

    targets = section.validation or {}
    held_by = {"validation": targets} if isinstance(targets, Split | Source) else targets
    validation = {name: part("validation", held) for name, held in held_by.items()}
    test = None if section.test is None else part("test", section.test)
    labels = examples.labels
    goal, groupings = recipe.target or TargetSection(), dict[str, Array]()
    for target, held in held_by.items() if goal.balance is not None else ():
        rows = tables.get(str(held), source)
        refuse_nulls(rows, str(goal.balance), "target.balance")
        groupings[target] = group_values(rows, str(goal.balance), "target.balance")
    left_out = {where: sources[where]["rows"] - count for where, count in used.items()}
    return Candidates(
        table=own.table,
        examples=scale(examples),
        validation=validation,
        test=test,
        noisy=own.noisy,
        classes=labels.numpy() if labels is not None and reader.classes else None,
        outputs=reader.classes.count if reader.classes else _width(labels),
        target_weights=_target_weights(recipe, validation),
        sources=sources | model_files(recipe),
        left_out={} if section.min_length is None else left_out,
        known=reader.known,
        groupings=groupings,
        worst=goal.worst or 0.0,
        formerly=own.formerly,
        relabelled=own.relabelled,
    )


def divide(
    validation: Mapping[str, SourceExamples], fraction: float, seed: int
) -> tuple[dict[str, SourceExamples], dict[str, SourceExamples]]:
    """Divide every validation set at random: all but a `fraction` of it, and that fraction.

    Raises:
        DataError: one has too few rows.
    """
    rest, taken = {}, {}
    for name, examples in validation.items():
        count = round(fraction * len(examples))
        if not 0 < count < len(examples):
            raise DataError(
                f"data.validation: {name} has {len(examples)} rows, too few to divide by "
                f"{fraction:g} into those that scores see and those that judge."
            )
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
        taken[name] = examples.take(order[:count].sort().values)
        rest[name] = examples.take(order[count:].sort().values)
    return rest, taken


def _counts_tokens(examples: SourceExamples) -> TypeGuard[TokenExamples]:
    """Whether losses are sums over tokens."""
    return isinstance(examples, TokenExamples) and examples.labels is None


def _terms(examples: SourceExamples) -> float:
    """Terms in the mean loss of all examples."""
    return float(examples.terms().sum()) if _counts_tokens(examples) else float(len(examples))


def _target_weights(recipe: Recipe, names: Iterable[str]) -> dict[str, float]:
    weights = recipe.selection.weights or dict.fromkeys(names, 1.0)
    return {name: weights[name] / max(weights.values()) for name in names}


def model_files(recipe: Recipe) -> dict[str, Any]:
    """What identifies the files of a pretrained model."""
    section = recipe.model
    if not isinstance(section, Pretrained):
        return {}
    parts = {
        "model": (section.pretrained, not section.from_scratch),
        "tokenizer": (section.tokenizer, False),  # weights beside it are not read
        "adapter": (section.adapter, True),
    }
    return {
        f"{what} {path}": describe_files(path, weights=weights)
        for what, (path, weights) in parts.items()
        if path is not None
    }


def _scaling(candidates: SourceExamples) -> Callable[[SourceExamples], SourceExamples]:
    """The scaling that standardizes the candidates' features, for any examples."""
    assert isinstance(candidates, TensorExamples)
    scaling = Scaling.standardizing(candidates.features, candidates.dtype)

    def scale(part: SourceExamples) -> SourceExamples:
        assert isinstance(part, TensorExamples)
        return part.standardized_by(scaling)

    return scale


def _refuse_other_shape(
    held: SourceExamples, candidates: SourceExamples, where: str, source: str
) -> None:
    """Raise DataError if a row of features is not shaped as the candidates' are."""
    if not (isinstance(held, TensorExamples) and isinstance(candidates, TensorExamples)):
        return
    shape, expected = (tuple(part.features.shape[1:]) for part in (held, candidates))
    if shape != expected:
        raise DataError(f"{where}: one row has shape {shape}, but in {source} it is {expected}.")


def _width(labels: Tensor | None) -> int:
    return 1 if labels is None or labels.ndim == 1 else labels.shape[1]


def _split(recipe: Recipe, count: int) -> dict[str, Tensor]:
    """Positions of train, validation and test in the source; train stays in source order."""
    generator = torch.Generator().manual_seed(recipe.data.seed)
    left = torch.from_numpy(large(count, np.int32))
    torch.randperm(count, generator=generator, out=left, dtype=torch.int32)
    parts = {}
    for part in ("test", "validation"):
        held = getattr(recipe.data, part)
        if isinstance(held, Split):
            size = round(held.fraction * count)
            if size < 1:
                raise DataError(
                    f"data.{part}.fraction: {held.fraction} of {count} rows is none; raise it."
                )
            parts[part], left = left[:size], left[size:]
    if len(left) == 0:
        raise DataError(
            f"{recipe.data.train}: validation and test take all {count} rows; "
            "nothing is left to choose from."
        )
    for rows in (*parts.values(), left):
        rows.numpy().sort()
    released()
    return parts | {"train": left}
