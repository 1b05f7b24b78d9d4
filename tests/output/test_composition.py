"""What was kept of which kind."""

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from curate.output.composition import Judged, composition
from tests.output.made import ON_LISTS, recipe


def judged(kept: list[bool]) -> Judged:
    return Judged(np.array(kept), None, np.ones(len(kept)))


def test_what_was_kept_adds_up() -> None:
    table = Dataset.from_dict(
        {
            "text": ["a" * n for n in (1, 2, 3, 4, 7, 8)],
            "label": ["x", "y", "x", "y", "x", "y"],
            "source": ["web", "web", None, "books", "web", "web"],
            "id": [f"id {i}" for i in range(6)],
        }
    )
    kept = [True, True, False, False, True, False]
    by = recipe({"text": "text", "label": "label"}, objective="sequence_classification")
    parts = composition(table, judged(kept), by)
    plain_ = {name: [tuple(part.values()) for part in lines] for name, lines in parts.items()}
    assert plain_ == {
        "label": [("x", 3, 2), ("y", 3, 1)],
        "source": [("books", 1, 0), ("web", 4, 3), ("none", 1, 0)],
        "id": [(f"id {i}", 1, int(kept[i])) for i in range(6)],
        "characters": [("1 to 1", 1, 1), ("2 to 3", 2, 1), ("4 to 7", 2, 1), ("8 to 15", 1, 0)],
    }


def test_labels_that_are_numbers_are_in_bins() -> None:
    table = Dataset.from_dict({"x": [[0.0]] * 9, "y": [float(i) for i in range(9)]})
    by = recipe({"features": ["x"], "label": "y"}, objective="regression")
    parts = composition(table, judged([i < 4 for i in range(9)]), by)["y"]
    assert [part["value"] for part in parts][:2] == ["0 to 1", "1 to 2"]
    assert [part["candidates"] for part in parts] == [1] * 7 + [2]
    assert sum(part["kept"] for part in parts) == 4


def test_classes_and_yes_or_no_are_named() -> None:
    features = Features({"x": Value("float64"), "label": ClassLabel(names=["cat", "ant"])})
    features |= {"old": Value("bool")}
    rows = {"x": [0.0] * 4, "label": [0, 1, 0, -1], "old": [True, False, True, True]}
    table = Dataset.from_dict(rows, features=Features(features))
    parts = composition(table, judged([True, False, True, True]), ON_LISTS)
    labels = [tuple(part.values()) for part in parts["label"]]
    assert labels == [("ant", 1, 0), ("cat", 2, 2), ("none", 1, 1)]
    assert [tuple(part.values()) for part in parts["old"]] == [("no", 1, 0), ("yes", 3, 3)]


def test_conversations_are_as_long_as_what_is_said() -> None:
    turns = [{"role": "user", "content": "abc"}, {"role": "assistant", "content": None}]
    table = Dataset.from_dict({"messages": [turns, turns[:1] * 2, []]})
    parts = composition(table, judged([True, False, False]), recipe({"messages": "messages"}))
    lengths = [tuple(part.values()) for part in parts["characters"]]
    assert lengths == [("1 to 1", 1, 0), ("2 to 3", 1, 1), ("4 to 7", 1, 0)]


def test_parts_of_a_turn_and_turns_in_json_are_counted_too() -> None:
    turns = [{"role": "a", "content": "abc"}, {"role": "b", "content": [{"text": "de"}, {}]}]
    table = Dataset.from_dict(
        {"messages": [turns, [{"role": "a"}]]}, features=Features({"messages": datasets.Json()})
    )
    parts = composition(table, judged([True, False]), recipe({"messages": "messages"}))
    lengths = [tuple(part.values()) for part in parts["characters"]]
    assert lengths == [("1 to 1", 1, 0), ("2 to 3", 0, 0), ("4 to 7", 1, 1)]


def test_influences_and_tokens_are_added_up_by_value() -> None:
    random = np.random.default_rng(0)
    source = random.integers(0, 3, 60)
    influence, tokens = random.normal(1e-3, 1e-4, 60), random.integers(1, 9, 60)
    seen = np.where(source == 2, 0, 2)  # rows that no step judged, but one
    seen[source.tolist().index(2)] = 1
    kept = random.random(60) < 0.4
    table = Dataset.from_dict({"x": [[0.0]] * 60, "source": source.tolist()})
    parts = composition(table, Judged(kept, influence, seen, tokens), ON_LISTS)["source"]
    for value, part in enumerate(parts):
        rows = source == value
        known = influence[rows & (seen > 0)]
        assert part["value"] == str(value)
        assert part["influence"] == pytest.approx(known.mean(), rel=1e-12)
        assert part["tokens"] == tokens[rows].sum()
        assert part["tokens_kept"] == tokens[rows & kept].sum()
        assert part["tokens_squared"] == (tokens[rows] ** 2).sum()
        if value < 2:
            error = known.std(ddof=1) / len(known) ** 0.5
            assert part["influence_error"] == pytest.approx(error, rel=1e-9)
    assert parts[2]["influence_error"] is None


def test_columns_of_many_values_need_rows_of_each() -> None:
    rows = {"x": [[0.0]] * 400, "cluster": [i % 40 for i in range(400)]}
    rows |= {"id": [f"{i % 41}" for i in range(400)], "size": [i % 13 + 0.5 for i in range(400)]}
    parts = composition(Dataset.from_dict(rows), judged([True] * 400), ON_LISTS)
    assert {name: len(lines) for name, lines in parts.items()} == {"cluster": 40}


def test_without_a_recipe_columns_of_words_are_counted() -> None:
    rows = {"x": [0.0] * 4, "source": ["a", "b"] * 2, "label": [0, 0, 1, 1]}
    parts = composition(Dataset.from_dict(rows), judged([True] * 4), None)
    assert [*parts] == ["label", "source", "characters"]
