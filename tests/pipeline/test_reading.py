"""What columns of a recipe are read as: features, classes, numbers."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig

from curate.datasets import TokenExamples, text
from curate.errors import DataError
from curate.pipeline.reading import column_uses, find_reader
from curate.recipe import check_recipe
from curate.recipe.load import parse
from tests import words
from tests.job import RECIPE

DATA = Dataset.from_dict(
    {"x": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "label": ["b", "a", "b"], "y": [0.5, 1.5, 2.5]}
)


def reader(*overrides: str) -> Any:
    settings = ["data.label_noise=null", *overrides]
    return find_reader(check_recipe(parse(RECIPE), settings), DATA)


def test_labels_of_a_classifier_are_classes_in_order() -> None:
    found = reader()
    examples = found.examples(DATA, "here")
    assert (found.label, found.classes.count) == ("label", 2)
    assert examples.labels.tolist() == [1, 0, 1]
    assert examples.all_features().tolist() == DATA["x"][:]
    assert examples.rows.tolist() == [0, 1, 2]


def test_labels_of_a_regression_are_numbers_of_the_models_type() -> None:
    numbers = ["objective=regression", "data.columns.label=y", "training.dtype=float64"]
    found = reader(*numbers)
    examples = found.examples(DATA, "here")
    assert found.classes is None
    assert examples.labels.dtype == examples.all_features().dtype == torch.float64
    assert examples.labels.flatten().tolist() == [0.5, 1.5, 2.5]


def test_classes_are_those_of_the_training_source() -> None:
    other = Dataset.from_dict({"x": [[0.0, 0.0]], "label": ["c"]})
    with pytest.raises(DataError, match="there"):
        reader().examples(other, "there")


def test_one_class_is_nothing_to_learn() -> None:
    same = Dataset.from_dict({"x": [[0.0], [1.0]], "label": ["a", "a"]})
    with pytest.raises(DataError, match="column label has one class; there is nothing to learn"):
        find_reader(check_recipe(parse(RECIPE)), same)


def test_what_columns_are_for() -> None:
    def uses(*overrides: str) -> Any:
        return column_uses(check_recipe(parse(RECIPE), ["data.label_noise=null", *overrides]))

    features = "data.columns={features: ['x*', y], label: y}"
    assert uses(features) == {"y": "label", "x*": "number"}
    assert uses(features, "objective=regression") == {"y": "number", "x*": "number"}
    text = [
        "model={pretrained: tiny}",
        "objective=causal_lm",
        "data={train: a.csv, validation: a.csv, columns: {prompt: p, completion: c, label: l}}",
    ]
    assert uses(*text) == {"p": "text", "c": "text"}


def test_a_classifiers_own_numbers_of_classes_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words.write(tmp_path)
    config = AutoConfig.from_pretrained("tiny")
    config.id2label, config.label2id = {0: "yes", 1: "no"}, {"yes": 0, "no": 1}
    config.save_pretrained("tiny")
    data = Dataset.from_dict({"text": ["a", "b"], "label": ["no", "yes"]})
    for scratch, ids in (("false", [1, 0]), ("true", [0, 1])):
        settings = [
            f"model={{pretrained: tiny, from_scratch: {scratch}}}",
            "objective=sequence_classification",
            "data={train: a.csv, validation: a.csv, columns: {text: text}}",
        ]
        found = find_reader(check_recipe(parse(words.RECIPE), settings), data)
        assert found.examples(data, "here").labels.tolist() == ids


def test_the_same_texts_are_not_tokenized_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(text, "LITTLE", 1)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    words.write(tmp_path)

    def read(rows: int, *settings: str) -> TokenExamples:
        found = find_reader(check_recipe(parse(words.RECIPE), settings), words.texts(rows))
        examples = found.examples(words.texts(rows), "here")
        assert isinstance(examples, TokenExamples)
        return examples

    first, shorter = read(40), read(40, "data.max_length=8")
    tokenized = []
    tokenize = text._ids
    monkeypatch.setattr(text, "_ids", lambda *a, **k: tokenized.append(a) or tokenize(*a, **k))
    for again, before in ((read(40), first), (read(40, "data.max_length=8"), shorter)):
        for name in ("tokens", "learned", "starts", "rows", "cut"):
            assert torch.equal(getattr(again, name), getattr(before, name)), name
    assert not tokenized
    read(41)
    assert tokenized
    (tmp_path / "cache" / "curate-tokens").rename(tmp_path / "elsewhere")
    assert torch.equal(read(40).tokens, first.tokens)
