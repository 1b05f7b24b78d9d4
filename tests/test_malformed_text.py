"""Malformed recipes and data for language models: one line each, exit code 2, nothing left."""

from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests import words
from tests.test_malformed import refused

CLASSES = "objective=sequence_classification"
TOKENS = "must be a number of tokens, at least 2, or a share of them above 0 and below 1 but got "
BAD_RECIPES: list[tuple[list[str], str]] = [
    (["model.pretrained=gone"], "model.pretrained: gone: cannot be loaded: no such directory, and"),
    (["model.pretrained=./gone"], "model.pretrained: ./gone: no such directory"),
    (["model.tokenizer=./gone"], "model.tokenizer: ./gone: no such directory"),
    (["model.pretrained=bare"], "model.tokenizer: bare: holds no tokenizer; give"),
    (["model={pretrained: tiny, tokenizer: large}"], "model.tokenizer: gives token 320 in row "),
    (["model={pretrained: tiny, kind: mlp}"], "model.kind: does not belong here; remove it"),
    (["model={kind: mlp}"], "model: objective causal_lm needs `pretrained: PATH`"),
    (["model.lora={rank: 0}"], "model.lora.rank: must be greater than or equal to 1 but got 0"),
    (
        ["model.lora={target_modules: [nope]}"],
        "model.lora.target_modules: no layer of the model is named nope; it",
    ),
    (["objective=classification"], "objective: a pretrained model has causal_lm or sequence_class"),
    (["data.columns={text: messages}"], "column messages holds List("),
    (["data.columns={text: nope}"], "texts.parquet: there is no column nope; it has text, "),
    (
        ["data.columns={text: text, features: [x]}"],
        "data.columns: give exactly one of features, text, prompt with completion (or "
        "chosen and rejected), and messages, "
        "but got features and text",
    ),
    (["data.columns={}"], "and messages, but got none"),
    (
        ["data={train: texts.parquet, columns: {features: [x]}, validation: {fraction: 0.2}}"],
        "data.columns.text: is required by objective causal_lm",
    ),
    (["data.columns={prompt: nope, completion: text}"], "there is no column nope"),
    (["data.columns={completion: text}"], "belong together, but there is no prompt"),
    (["data.columns={prompt: text}"], "belong together, but there is no completion"),
    (["data.columns={messages: text}"], "the tokenizer has no chat template"),
    (["data.columns={text: text, image_shape: [2, 2]}"], "image_shape is for features; remove it"),
    (["data.standardize=true"], "data: standardize is for features; remove it"),
    (["data.max_length=1"], "data.max_length: must be greater than or equal to 2 but got 1"),
    (["data.max_length=65"], "data.max_length: is 65, but the model takes 64 tokens"),
    (
        ["data.max_length=2", "data.columns={prompt: prompt, completion: completion}"],
        "no token to learn in the 2 of data.max_length, the first at row 0; raise it, or leave the",
    ),
    *(
        ([f"selection.keep={{tokens: {wrong}}}"], f"selection.keep.tokens: {TOKENS}{wrong}.")
        for wrong in ("1", "1.0", "0", "-5", "0.0", "-0.5", "2.5", "1e+30", "1e+16", "'5'", "[5]")
    ),
    (["selection.keep={tokens: true}"], f"selection.keep.tokens: {TOKENS}True."),
    (["selection.keep={tokens: null}"], "selection.keep: give exactly one of auto, fraction, coun"),
    (["selection.keep={tokens: 50, count: 5}"], "give exactly one of auto, fraction, count"),
    (["selection.keep={tokens: 99999}"], "selection.keep.tokens: is 99999, but the candidates hav"),
    (["selection.keep={tokens: 2}"], "selection.keep.tokens: is 2, but the shortest candidate has"),
    (["selection.keep={tokens: 0.5}", CLASSES], "selection.keep.tokens: needs losses that are sum"),
    (["selection.per=token", CLASSES], "selection.per: token needs losses that are sums over toke"),
    (["data.min_length=0"], "data.min_length: must be greater than or equal to 1 but got 0"),
    (
        ["data.min_length=24"],
        "texts.parquet: none of 60 rows has the 24 tokens of data.min_length, "
        "the longest has 23; lower it",
    ),
    ([CLASSES, "data.min_length=25"], "none of 60 rows has the 25 tokens of data.min_length, the "),
    (
        ["data={train: texts.parquet, columns: {features: [x]}, min_length: 3}"],
        "data: min_length is for text; remove it",
    ),
    (["selection.policy=knn_shapley"], "knn_shapley needs class labels and fixed features"),
    (["selection.policy=knn_shapley", CLASSES], "knn_shapley needs class labels and fixed feature"),
    (["data.label_noise={fraction: 0.1}"], "data.label_noise: needs class labels, so objective"),
    (
        [CLASSES, "data.columns={messages: messages}"],
        "data.columns.messages: is for objective causal_lm; sequence_classification needs text",
    ),
    ([CLASSES, "data.columns={text: text, label: nope}"], "there is no column nope"),
    ([CLASSES, "data.columns={text: text, label: null}"], "data.columns.label: is required by"),
]
BAD_DATA: list[tuple[dict[str, Any], str]] = [
    ({"text": ["a b", None, "c d"]}, "column text is null at row 1"),
    (
        {"text": ["a b", "", "c d", ""]},
        "2 of 4 rows have no token to learn, the first at row 1; drop them, or leave them out with "
        "data.min_length: 1.",
    ),
    ({"text": [1, 2, 3]}, "column text holds Value('int64'); text must be strings"),
    ({"text": [b"a", b"b", b"c"]}, "text must be strings"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One for all: what is refused leaves nothing behind."""
    folder = tmp_path_factory.mktemp("malformed")
    with chdir(folder):
        words.write(folder)
        words.gpt2().save_pretrained("bare")
        large = words.tokenizer()
        large.add_tokens(["the"])
        large.save_pretrained("large")
        yield folder


@pytest.mark.parametrize(("overrides", "message"), BAD_RECIPES)
def test_malformed_recipes_are_refused_in_one_line(
    place: Path, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused("text.yaml", overrides, message, capsys)


@pytest.mark.parametrize("case", range(len(BAD_DATA)))
def test_malformed_data_is_refused_in_one_line(
    place: Path, case: int, capsys: pytest.CaptureFixture[str]
) -> None:
    columns, message = BAD_DATA[case]
    Dataset.from_dict(columns).to_parquet(f"bad{case}.parquet")
    data = [f"data.train=bad{case}.parquet", "data.validation=texts.parquet"]
    refused("text.yaml", data, message, capsys)
