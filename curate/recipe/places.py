"""Where a key belongs that stands in the wrong place, or under another name."""

import difflib
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from curate.recipe.schema import Recipe

MOST = 3
"""Places that are named at most."""
ELSEWHERE = {
    "learning_rate": "lr",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "max_grad_norm": "clip_norm",
    "gradient_checkpointing": "checkpointing",
    "warmup": "warmup_steps",
    "batch": "batch_size",
    "K": "horizon",
    "k": "horizon",
}
"""What other tools call our keys."""


def advice(place: str) -> str:
    """What to do about a key that is unknown at `place`, `section.key` without tags."""
    place = re.sub(r"\.\w+\.\d+", "", place)  # groups of an optimizer have its keys
    section, _, key = place.rpartition(".")
    key, paths = ELSEWHERE.get(key, key), [*_paths()]
    if place in paths:
        return "does not belong here; remove it"  # of another kind of this section
    siblings = [path.rpartition(".")[2] for path in paths if path.rpartition(".")[0] == section]
    names = {path.rpartition(".")[2] for path in paths}
    for near, known in ((1.0, siblings), (1.0, names), (0.6, siblings), (0.6, names)):
        if close := difflib.get_close_matches(key, known, n=1, cutoff=near):
            found = [close[0]] if known is siblings else _named(paths, close[0])
            found.sort(key=lambda path: (not path.startswith(f"{section}."), path.count(".")))
            return f"unknown key; did you mean {' or '.join(found[:MOST])}?"
    return "unknown key; remove it"


def _named(paths: list[str], key: str) -> list[str]:
    return [path for path in paths if path.rpartition(".")[2] == key]


@cache
def _paths() -> dict[str, None]:
    """The path of every key, those of lists' items aside, in the order of a recipe."""
    whole = Recipe.model_json_schema()

    def walk(value: Any, place: str) -> Iterator[str]:
        for option in (value, *value.get("anyOf", ()), *value.get("oneOf", ())):
            part = whole["$defs"][option["$ref"].rsplit("/", 1)[-1]] if "$ref" in option else option
            for key, inner in part.get("properties", {}).items():
                yield f"{place}{key}"
                yield from walk(inner, f"{place}{key}.")

    return dict.fromkeys(walk(whole, ""))
