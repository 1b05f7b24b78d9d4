"""Which columns are what, for data as people have them."""

from typing import Any

import pytest
from datasets import Dataset

from curate.datasets import look
from curate.errors import DataError
from curate.pipeline.column_guess import Guess, guess

WORDS = [*"abcdefghijklmnopqrstuvwxyz"]
N = 120


def sentences(count: int = N) -> list[str]:
    return [f"{' '.join(WORDS[k % 9 : k % 9 + 5])} {k}" for k in range(count)]


def guessed(*label: str, **columns: Any) -> Guess:
    return guess(look(Dataset.from_dict(columns)), N, "s", *label)


def few(kinds: int = 3, count: int = N) -> list[int]:
    return [k % kinds for k in range(count)]


def spread(seed: int = 7) -> list[float]:
    return [(k * seed % 101) / 10 for k in range(N)]


def test_numbers_and_a_label() -> None:
    found = guessed(id=[*range(N)], a=spread(), b=spread(5), one=[1] * N, label=few())
    assert found.objective == "classification"
    assert found.columns == {"features": ["a", "b"], "label": "label"}
    assert found.unused == {"id": "another in every row: an id", "one": "the same in every row"}


def test_texts_and_a_label() -> None:
    found = guessed(title=few(2), review=sentences(), label=["good", "bad"] * (N // 2))
    assert found.objective == "sequence_classification"
    assert found.columns == {"text": "review", "label": "label"}
    assert found.unused == {"title": "only label and review count here"}


def test_texts_alone_are_learned_to_write() -> None:
    found = guessed(text=sentences(), source=["a", "b"] * (N // 2))
    assert (found.objective, found.columns, found.label) == ("causal_lm", {"text": "text"}, None)


def test_prompts_and_conversations() -> None:
    pair = guessed(question=sentences(), answer=sentences()[::-1])
    assert pair.columns == {"prompt": "question", "completion": "answer"}
    turns = [[{"role": "user", "content": text}] for text in sentences()]
    assert guessed(messages=turns, n=few()).columns == {"messages": "messages"}
    labelled = guessed(input=sentences(), output=["yes", "no"] * (N // 2))
    assert labelled.columns == {"text": "input", "label": "output"}


def test_a_label_with_many_numbers_is_an_amount() -> None:
    found = guessed(sqm=spread(), price=[1000 + k * k for k in range(N)])
    assert found.objective == "regression"
    assert found.columns == {"features": ["sqm"], "label": "price"}


@pytest.mark.parametrize(
    ("values", "objective", "classes"),
    [
        ([1, 2, 3, 4, 5], "classification", 6),
        ([0, 1], "classification", None),
        ([-1, 1], "regression", None),
        ([0.5, 1.0], "regression", None),
        ([*range(30)], "regression", None),
    ],
)
def test_which_numbers_are_classes(
    values: list[float], objective: str, classes: int | None
) -> None:
    found = guessed(x=spread(), target=[values[k % len(values)] for k in range(N)])
    assert (found.objective, found.columns.get("classes")) == (objective, classes)


def test_the_label_can_be_said() -> None:
    rows = {"x": spread(), "city": ["Oslo", "Rome"] * (N // 2), "label": few()}
    assert guessed("city", **rows).columns == {"features": ["x", "label"], "label": "city"}
    with pytest.raises(DataError, match="there is no column town; it has x, city, label"):
        guessed("town", **rows)


def test_what_has_gaps_is_left_out() -> None:
    found = guessed(x=spread(), gaps=[None, *spread()[1:]], label=few())
    assert found.columns["features"] == ["x"]
    assert found.unused == {"gaps": "1 rows have none; fill them to use it"}


def test_many_columns_have_one_pattern() -> None:
    many = {f"pixel{k}": spread(k + 2) for k in range(30)}
    assert guessed(**many, label=few()).columns["features"] == ["*"]
    beside = guessed(**many, name=few(1), label=few())
    assert beside.columns["features"] == ["pixel*"]
    clash = guessed(**many, pixel_one=few(1), label=few())
    assert clash.columns["features"] == [*many]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": sentences(), "stars": spread()}, "which nothing here learns from texts"),
        ({"a": spread(), "stars": sentences()}, "120 different words, which nothing here learns;"),
        ({"label": few(), "a": ["x"] * N}, "beside label no column has numbers without gaps"),
        ({"a": spread(), "stars": ["x"] * N}, "column stars is the same in every row; give anoth"),
        ({"a": spread(), "stars": [[1.5]] * N}, "column stars is"),
        ({"a": ["x"] * N}, "no column looks like a label; say which with --label, one of a"),
    ],
)
def test_what_cannot_be_learned_is_said(columns: dict[str, Any], message: str) -> None:
    label = ["stars"] if "stars" in columns else []
    with pytest.raises(DataError, match=message):
        guessed(*label, **columns)
