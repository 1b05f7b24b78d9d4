"""`curate init`: from data that nobody has described to a recipe that runs in minutes."""

from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

from datasets import Dataset

from curate.datasets import (
    Column,
    Use,
    contradicting,
    look,
    read,
    repeated,
    require_columns,
    row_keys,
    shared,
)
from curate.errors import DataError, OutputError
from curate.pipeline.build import choose_device
from curate.pipeline.column_guess import Guess, guess, uses_of
from curate.pipeline.sizes import sized
from curate.recipe import check_recipe
from curate.recipe.load import commented, parse
from curate.runtime.files import write_whole_text

TOGETHER = 6
"""Columns of numbers in a row above which they are told of together."""


@dataclass(frozen=True)
class Asked:
    """Data to look at, as `data.train` names them, and what is known of them."""

    path: str
    split: str | None = None
    name: str | None = None
    validation: str | None = None
    label: str | None = None

    def source(self, split: str | None) -> Any:
        """As a recipe names it."""
        given = {"path": self.path, "name": self.name, "split": split}
        filled = {key: value for key, value in given.items() if value is not None}
        return filled if len(filled) > 1 else self.path


@dataclass(frozen=True)
class Looked:
    """What was seen: the rows, what is in their columns and what those are; rows of the target."""

    data: Dataset
    columns: list[Column]
    guess: Guess
    held: Dataset | None
    target: Any


def run_init(asked: Asked, out: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Look at data, and write a recipe for it.

    Returns:
        plain values of what was seen, for `describe_look`.

    Raises:
        DataError: it cannot be read, or there is nothing to learn. OutputError: there is something
            already, or it cannot be written.
    """
    _refuse_there(out, overwrite)
    for path in (asked.path, asked.validation):
        if path is not None and out.exists() and Path(path).exists() and out.samefile(path):
            raise OutputError(f"{out}: is the data itself; give another --out.")
    looked = _look(asked)
    same = _alike(looked)
    recipe, notes = _recipe(asked, looked, same)
    text = commented(recipe, notes)
    check_recipe(parse(text))
    try:
        write_whole_text(out, text)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror}.") from error
    return {
        "data": asked.path,
        "rows": len(looked.data),
        "columns": _words(looked),
        "target": asked.validation or "its split validation",
        "target_rows": None if looked.held is None else len(looked.held),
        "recipe": str(out),
        "objective": looked.guess.objective,
        "model": recipe["model"].get("pretrained", recipe["model"].get("kind")),
        **same,
    }


def _refuse_there(out: Path, overwrite: bool) -> None:
    if out.is_dir():
        raise OutputError(f"{out}: is a directory; give --out the name of a file.")
    if out.exists() and not overwrite:
        raise OutputError(f"{out}: exists; give another --out, or --overwrite.")
    if not out.parent.is_dir():
        raise OutputError(f"{out}: there is no directory {out.parent}; make it first.")


def _look(asked: Asked) -> Looked:
    """Read the data, as a recipe would, and guess."""
    uses = uses_of(asked.label)
    data, columns = _columns(asked, uses)
    found = guess(columns, len(data), asked.path, asked.label)
    needed: dict[str, Use] = {c.name: "text" for c in found.used if c.kind == "text"}
    if found.label is not None:
        needed[found.label.name] = "label"
    if ".csv" in asked.path and any(uses.get(n, uses["*"]) != use for n, use in needed.items()):
        uses = {**needed, "*": "number"}  # as the recipe will have them
        data, columns = _columns(asked, uses)
        label = None if found.label is None else found.label.name
        found = guess(columns, len(data), asked.path, label)
    held, target = None, None
    if asked.validation is not None:
        target = asked.validation
        held = read(target, uses=uses)
        names = [c.name for c in (*found.used, *([found.label] if found.label else []))]
        require_columns(held, names, target)
    else:
        with suppress(DataError):  # most have no such part
            held = read(asked.path, split="validation", name=asked.name, uses=uses)
            target = asked.source("validation")
    return Looked(data, columns, found, held, target)


def _columns(asked: Asked, uses: dict[str, Use]) -> tuple[Dataset, list[Column]]:
    data = read(asked.path, split=asked.split, name=asked.name, uses=uses)
    return data, look(data)


def _alike(looked: Looked) -> dict[str, int | None]:
    """How many rows are as another, contradict another, or are in the target, too."""
    used = [column.name for column in looked.guess.used]
    keys, label = row_keys(looked.data, used), looked.guess.label
    found: dict[str, int | None] = {"contradicting": None, "shared": None}
    if label is None:
        found["repeated"] = repeated(keys)
    else:
        found["repeated"] = repeated(row_keys(looked.data, [*used, label.name]))
        found["contradicting"] = contradicting(keys, row_keys(looked.data, [label.name]))
    if looked.held is not None:
        found["shared"] = shared(keys, row_keys(looked.held, used))
    return found


def _recipe(
    asked: Asked, looked: Looked, same: dict[str, int | None]
) -> tuple[dict[str, Any], dict[str, str]]:
    """A recipe of plain values, and a note for whatever was guessed."""
    found, rows = looked.guess, len(looked.data)
    on_gpu = choose_device("auto").type == "cuda"
    chosen = sized(found, rows, has_target=looked.held is not None, on_gpu=on_gpu)
    data = {"train": asked.source(asked.split), "validation": looked.target or chosen.target}
    data["columns"] = found.columns | chosen.columns
    notes = {
        "": f"Made by `curate init` of {asked.path}, {rows:,} rows. Change what it guessed wrong.",
        "data.validation": _about_target(looked, same),
        "data.columns": _about_columns(found),
        "objective": _about_objective(found),
        **chosen.notes,
    }
    return {
        "data": data | chosen.data,
        "model": chosen.model,
        "objective": found.objective,
        "training": chosen.training,
        "selection": chosen.selection,
        **chosen.more,
    }, notes


def _about_target(looked: Looked, same: dict[str, int | None]) -> str:
    if looked.held is None:
        return (
            "rows are kept for what they do to these. A share of the same rows is as noisy as they "
            "are: a file of a few hundred rows that were checked by hand is far better "
            "(`validation: checked.csv`)"
        )
    note = "rows are kept for what they do to these: make sure that they are right"
    if same["shared"]:
        note += f"; {same['shared']:,} of them are candidates, too, which flatters those"
    return note


def _about_columns(found: Guess) -> str:
    if found.label is None:
        other = "`text: NAME`, `prompt: NAME, completion: NAME` or `messages: NAME`"
        note = f"what is learned; it could be {other}"
    else:
        note = "what is learned from, and the label to predict"
    if found.label is not None and found.label.missing:
        note += (
            f". {found.label.missing:,} rows have no label, which `curate select` refuses: fill "
            "them, or drop the rows"
        )
    unused = [f"{name} ({why})" for name, why in found.unused.items()]
    shown = unused[:8] + [f"and {len(unused) - 8} more"] * (len(unused) > 8)
    return note + (f". Not used: {', '.join(shown)}" if unused else "")


def _about_objective(found: Guess) -> str:
    if found.objective == "regression":
        return "or `classification`, if the label's numbers are classes 0, 1, 2, ..."
    if found.objective == "classification":
        return "or `regression`, if the label is an amount"
    if found.objective == "causal_lm":
        return (
            "the next token is learned; with a column of classes, `sequence_classification`: run "
            "`curate init` again with --label"
        )
    return "or `causal_lm`, which learns to write the texts"


def _words(looked: Looked) -> list[tuple[str, str, str]]:
    """The name of every column, what it is taken for, and what it holds; many alike together."""
    found = looked.guess
    roles = {name: key for key, name in found.columns.items() if isinstance(name, str)}

    def taken(column: Column) -> tuple[str, str]:
        if column.name in found.unused:
            return "not used", found.unused[column.name]
        return roles.get(column.name, "feature"), ""

    lines = []
    for (role, why), run in groupby(looked.columns, taken):
        some = [*run]
        if len(some) > TOGETHER:
            what = f"{len(some):,} columns{': ' * bool(why)}{why}"
            lines.append((f"{some[0].name} to {some[-1].name}", role, what))
        else:
            lines += [(column.name, role, why or holds(column, found)) for column in some]
    return lines


def holds(column: Column, found: Guess) -> str:
    """What a column holds, in some words."""
    if column.kind == "image":
        ends = dict.fromkeys([min(column.sizes, key=prod), max(column.sizes, key=prod)])
        words = f"pictures of {' to '.join(f'{height}x{width}' for height, width in ends)}"
    elif column is found.label and found.objective != "regression":
        counts = [f"{name} {count:,}" for name, count in (column.counts or {}).items()]
        words = f"{column.distinct:,} classes{': ' * bool(counts)}{', '.join(counts)}"
    elif column.kind == "text":
        words = f"{column.low:,} to {column.high:,} characters, half up to {column.middle:,}"
    elif column.kind == "number":
        low, high, mean = map(_number, (column.low, column.high, column.mean))
        words = f"{low} to {high}, mean {mean}"
    elif column.kind == "numbers":
        words = f"lists of {column.width:,} numbers"
    else:
        words = "conversations"
    return f"{column.missing:,} missing; {words}" if column.missing else words


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:,.4g}"
