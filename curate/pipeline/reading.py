"""From rows to examples, by the columns that a recipe names: features with labels, or texts."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import torch
from datasets import Dataset
from torch import Tensor

from curate import models
from curate.datasets import (
    Classes,
    Encoded,
    PairExamples,
    SourceExamples,
    TensorExamples,
    TokenExamples,
    Use,
    cache_file,
    counted,
    encode_completions,
    encode_messages,
    encode_texts,
    encode_whole,
    find_classes,
    holds_names,
    match_features,
    read,
    read_classes,
    read_features,
    read_numbers,
    require_columns,
    truncate,
)
from curate.errors import DataError, ModelError, RecipeError
from curate.recipe import Pretrained, Recipe, Source
from curate.recipe.data import Columns
from curate.recipe.names import find_objective
from curate.runtime.large import pieces

Texts = TokenExamples | PairExamples


class Known(NamedTuple):
    """What a reader found in the training source.

    features: the names of the columns of features, none for texts. classes: the values of the
    label, if they are classes.
    """

    features: list[str]
    classes: Classes | None

    @property
    def words(self) -> list[str]:
        """The classes in words, by their ids; none if there are no classes."""
        if self.classes is None:
            return []
        return [*(self.classes.names or map(str, range(self.classes.count)))]


class Reader(Protocol):
    """Turns datasets into examples, each in the same way.

    label: the column of labels, if one is read. known: what it goes by.
    """

    @property
    def label(self) -> str | None: ...

    @property
    def known(self) -> Known: ...

    @property
    def classes(self) -> Classes | None: ...

    def examples(self, data: Dataset, source: str) -> SourceExamples:
        """Read all rows of `data`, which came from `source`."""
        ...


def column_uses(recipe: Recipe) -> dict[str, Use]:
    """What the columns are for that a recipe names, for files that do not say what they hold."""
    columns, holds = recipe.data.columns, find_objective(recipe.objective).label
    uses: dict[str, Use] = {}
    if columns.label is not None and holds is not None:
        uses[columns.label] = "number" if holds == "numbers" else "label"
    uses |= dict.fromkeys((n for n in columns.texts if n != columns.messages), "text")
    return uses | {p: "number" for p in columns.features or [] if p not in uses}


def read_source(source: Source, uses: Mapping[str, Use]) -> Dataset:
    """The rows of a source, by what its columns are for."""
    return read(
        source.path,
        split=source.split,
        name=source.name,
        uses=uses,
        outside_files=source.outside_files,
    )


def find_reader(recipe: Recipe, train: Dataset, known: Known | None = None) -> Reader:
    """The reader for a recipe: as the training source is, or as one was that is `known`."""
    if isinstance(recipe.model, Pretrained):
        return TextReader(recipe, train, recipe.model, known)
    return FeatureReader(recipe, train, known)


class FeatureReader:
    """Columns of numbers or images, and labels of any kind."""

    def __init__(self, recipe: Recipe, train: Dataset, known: Known | None = None) -> None:
        self.recipe = recipe
        self.dtype = getattr(torch, recipe.training.dtype)
        columns, source = recipe.data.columns, str(recipe.data.train)
        self.label, self.holds = columns.label, find_objective(recipe.objective).label
        self.classes: Classes | None = None
        if known is not None:
            self.features, self.classes = known
            return
        if self.label is not None:
            require_columns(train, [self.label], source)
        exclude = [self.label] if self.label else []
        self.features = match_features(train, columns.features or [], exclude, source)
        if self.label is not None and (
            self.holds == "classes" or (self.holds == "any" and holds_names(train, self.label))
        ):
            self.classes = _classes_of(recipe, train, self.label)

    @property
    def known(self) -> Known:
        """What it goes by."""
        return Known(self.features, self.classes)

    def examples(self, data: Dataset, source: str) -> TensorExamples:
        """Read all rows of `data`, with their labels if there are any."""
        features = read_features(
            data,
            self.features,
            source,
            dtype=self.dtype,
            image_shape=self.recipe.data.columns.image_shape,
            image_size=self.recipe.data.columns.image_size,
        )
        labels = None
        if self.label is not None and self.classes is not None:
            labels = read_classes(data, self.label, source, self.classes)
        elif self.label is not None:
            labels = read_numbers(
                data, self.label, source, self.dtype, keep_ints=self.holds != "numbers"
            )
        return TensorExamples(features, labels, counted(len(data)), dtype=self.dtype)


class TextReader:
    """Columns of text through the model's tokenizer, and classes for a classifier."""

    def __init__(
        self, recipe: Recipe, train: Dataset, model: Pretrained, known: Known | None = None
    ) -> None:
        self.columns = recipe.data.columns
        self.label = self.columns.label if find_objective(recipe.objective).label else None
        config = models.load_config(model.pretrained, trust=model.trust_remote_code)
        ids_of = {} if model.from_scratch else config.label2id or {}
        self._further = known is not None
        known = known or Known(
            [], _classes_of(recipe, train, self.label, ids_of) if self.label else None
        )
        self.known, self.classes = known, known.classes
        self.tokenizer = models.load_tokenizer(
            model.tokenizer or model.pretrained, trust=model.trust_remote_code
        )
        self.vocabulary = models.vocabulary_size(config)
        self.pad = models.pad_id(self.tokenizer, config)
        most = models.most_tokens(self.tokenizer, config)
        wanted = recipe.data.max_length
        if wanted is not None and most is not None and wanted > most:
            raise RecipeError(f"data.max_length: is {wanted}, but the model takes {most} tokens.")
        self.max_length = wanted or min(models.DEFAULT_LENGTH, most or models.DEFAULT_LENGTH)
        self.min_length = recipe.data.min_length

    def examples(self, data: Dataset, source: str) -> Texts:
        """Read the rows of `data`, cut where they are too long, with classes if there are any.

        Rows shorter than `min_length` are left out.

        Raises:
            DataError: a row has nothing to learn, or all are too short.
            ModelError: the model does not know a token.
        """
        labels: Tensor | None = None
        if self.label is not None and self.classes is not None:
            labels = read_classes(data, self.label, source, self.classes)
        columns = self.columns
        if columns.chosen is None:
            return self._long_enough(self._read(data, source, columns, labels), source)
        chosen, rejected = (
            self._read(data, source, Columns(prompt=columns.prompt, completion=side), None)
            for side in (columns.chosen, columns.rejected)
        )
        return self._long_enough(PairExamples.of(chosen, rejected), source)

    def _read(
        self, data: Dataset, source: str, columns: Columns, labels: Tensor | None
    ) -> TokenExamples:
        named = [columns.text, columns.messages, columns.prompt, columns.completion]
        settings = [named, self.label is not None, self.max_length]
        names = [name for name in named if name is not None]
        require_columns(data, names, source)
        with models.quiet():
            once = self._further  # rows that come as a stream are not kept
            keep = None if once else cache_file(data, names, self.tokenizer, settings)
            encoded = self._encoded(data, source, columns)
            texts = TokenExamples.gather(encoded, labels, self.pad, keep)
        self._refuse_unknown(texts, source)
        return texts

    def _encoded(self, data: Dataset, source: str, columns: Columns) -> Iterator[Encoded]:
        tokenizer = self.tokenizer
        if self.label is not None:
            assert columns.text is not None
            return encode_whole(data, columns.text, source, tokenizer, self.max_length)
        most = self.max_length
        if columns.text is not None:
            texts = encode_texts(data, columns.text, source, tokenizer, most)
        elif columns.messages is not None:
            texts = encode_messages(data, columns.messages, source, tokenizer, most)
        else:
            assert columns.prompt is not None
            assert columns.completion is not None
            named = columns.prompt, columns.completion
            texts = encode_completions(data, *named, source, tokenizer, most)
        return truncate(texts, self.max_length)

    def _long_enough(self, texts: Texts, source: str) -> Texts:
        terms = texts.terms()
        if isinstance(texts, TokenExamples) and self.label is not None:
            terms = texts.lengths()
        if self.min_length is None:
            self._refuse_empty(texts, terms, source)
            return texts
        enough = (terms >= self.min_length).nonzero().flatten()
        if len(enough) == 0 and not self._further:
            raise DataError(
                f"{source}: none of {len(texts)} rows has the {self.min_length} tokens of "
                f"data.min_length, the longest has {int(terms.max())}; lower it."
            )
        return texts.take(enough)

    def _refuse_empty(self, texts: Texts, terms: Tensor, source: str) -> None:
        empty = (terms == 0).nonzero().flatten().tolist()
        if empty:
            cut = bool(texts.cut[empty].any())
            within = f" in the {self.max_length} of data.max_length" if cut else ""
            remedy = "raise it" if cut else "drop them"
            raise DataError(
                f"{source}: {len(empty)} of {len(texts)} rows have no token to learn{within}, the "
                f"first at row {empty[0]}; {remedy}, or leave them out with data.min_length: 1."
            )

    def _refuse_unknown(self, texts: TokenExamples, source: str) -> None:
        for part in pieces(len(texts.tokens)):
            unknown = texts.tokens[part] >= self.vocabulary
            if not unknown.any():
                continue
            place = part.start + int(unknown.int().argmax())
            row = int((texts.starts[1:] <= place).sum())
            raise ModelError(
                f"model.tokenizer: gives token {int(texts.tokens[place])} in row {row} of "
                f"{source}, but the model has a vocabulary of {self.vocabulary}; give the "
                "tokenizer that the model was made with."
            )


def _classes_of(
    recipe: Recipe, train: Dataset, label: str, ids_of: Mapping[str, int] | None = None
) -> Classes:
    source = str(recipe.data.train)
    classes = find_classes(train, label, source, recipe.data.columns.classes, ids_of)
    if classes.count < 2:
        raise DataError(f"{source}: column {label} has one class; there is nothing to learn.")
    return classes
