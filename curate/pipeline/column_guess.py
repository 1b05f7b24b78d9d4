"""Which columns are what, as far as what they hold tells."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from curate.datasets import Column, Use
from curate.errors import DataError

LABELS = ("label", "labels", "target", "class", "category", "y", "sentiment", "intent")
TEXTS = ("text", "sentence", "content", "review", "comment", "body", "document", "tweet")
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "chosen"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("input", "output"),
    ("source", "target"),
)
MIXTURE = ("source", "split", "lang", "language", "domain", "fold", "subset")
"""Names of columns whose few values are hardly what is to be learned."""
FEW_CLASSES, MOST_CLASSES = 20, 1000
"""Whole numbers of so few values are classes; of more, if they are all from 0 on."""
SHORT = 64
"""Characters of an id, at most."""


@dataclass(frozen=True)
class Guess:
    """Which columns are what.

    columns: the section `data.columns`. used: what examples are made of. unused: why others are not
    used, by name. label: what is predicted, None for language models.
    """

    objective: str
    columns: dict[str, Any]
    used: list[Column]
    unused: dict[str, str]
    label: Column | None = None

    @property
    def pictures(self) -> bool:
        """Whether examples are pictures."""
        return self.used[0].kind == "image"


def uses_of(label: str | None) -> dict[str, Use]:
    """What columns are read as before anybody has seen them, as `datasets.read` takes it."""
    spelled = [how(name) for name in LABELS for how in (str, str.title, str.upper)]
    uses: dict[str, Use] = {"text": "text"}
    for name in spelled if label is None else [label]:
        uses[name] = "label"
    return {**uses, "*": "number"}


def guess(columns: Sequence[Column], rows: int, source: str, label: str | None = None) -> Guess:
    """Guess which columns are what.

    Args:
        label: the column to predict, if it is known.

    Raises:
        DataError: there is no such column, or nothing to learn from, or to learn.
    """
    there = {column.name: column for column in columns}
    if label is not None and label not in there:
        raise DataError(f"{source}: there is no column {label}; it has {', '.join(there)}.")
    unused = {c.name: why for c in columns if c.name != label and (why := _useless(c, rows))}
    usable = [column for column in columns if column.name not in unused]
    if label is None and (language := _language(usable, rows)) is not None:
        return Guess("causal_lm", *language, _others(columns, language[1], unused))
    texts = [column for column in usable if _is_text(column, rows) and column.name != label]
    texts.sort(key=lambda c: (c.name.lower() not in TEXTS, -c.middle))
    pictures = [column for column in usable if column.kind == "image"]
    chosen = there[label] if label is not None else _label(usable, rows, bool(texts or pictures))
    if chosen is None and texts:
        used = texts[:1]
        return Guess("causal_lm", {"text": used[0].name}, used, _others(columns, used, unused))
    if chosen is None:
        raise DataError(
            f"{source}: no column looks like a label; say which with --label, one of "
            f"{', '.join(there)}."
        )
    if chosen.kind not in ("class", "number", "text") or chosen.distinct < 2:
        what = "the same in every row" if chosen.distinct == 1 else "neither a class nor a number"
        raise DataError(f"{source}: column {chosen.name} is {what}; give another --label.")
    numbers = [c for c in usable if c.kind in ("number", "numbers") and c is not chosen]
    used = pictures[:1] or texts[:1] or [column for column in numbers if not _gaps(column)]
    if not used:
        raise DataError(
            f"{source}: beside {chosen.name} no column has numbers without gaps, texts or "
            "pictures to learn from."
        )
    on_text = used[0].kind == "text"
    classes = is_classes(chosen, rows)
    if not classes and (on_text or chosen.kind == "text"):
        what, how = ("words", "") if chosen.kind == "text" else ("numbers", " from texts")
        raise DataError(
            f"{source}: column {chosen.name} has {chosen.distinct:,} different {what}, which "
            f"nothing here learns{how}; give a column of classes with --label."
        )
    names: dict[str, Any] = (
        {"text": used[0].name} if on_text else {"features": patterns(used, chosen, columns)}
    )
    names["label"] = chosen.name
    if classes and chosen.kind == "number" and chosen.high >= chosen.distinct:
        names["classes"] = int(chosen.high) + 1
    objective = "classification" if classes else "regression"
    objective = "sequence_classification" if on_text else objective
    return Guess(objective, names, used, _others(columns, [*used, chosen], unused), chosen)


def is_classes(column: Column, rows: int) -> bool:
    """Whether a column can be read as classes and looks like it."""
    if column.kind == "class":
        return True
    if column.kind == "text":
        return column.distinct <= max(2, rows // 2)
    if column.kind != "number" or not column.whole or column.low < 0:
        return False
    from_zero = column.low == 0 and column.high == column.distinct - 1
    most = min(MOST_CLASSES if from_zero else FEW_CLASSES, max(2, rows // 5))
    return column.distinct <= most and column.high < MOST_CLASSES


def patterns(used: Sequence[Column], label: Column, columns: Sequence[Column]) -> list[str]:
    """The names of columns; of many, `*` if they are all there are, or what they begin with."""
    names = [column.name for column in used]
    others = [c.name for c in columns if c.name not in {*names, label.name}]
    if len(names) <= FEW_CLASSES:
        return names
    if not others:
        return ["*"]
    first = names[0].rstrip("0123456789")
    clean = first and not any(sign in first for sign in "*?[")
    alike = all(name.startswith(first) for name in names)
    if clean and alike and not any(name.startswith(first) for name in [*others, label.name]):
        return [f"{first}*"]
    return names


def _language(columns: Sequence[Column], rows: int) -> tuple[dict[str, str], list[Column]] | None:
    """The columns of conversations, or of prompts and what goes on with them."""
    for column in columns:
        if column.kind == "messages":
            return {"messages": column.name}, [column]
    texts = {column.name.lower(): column for column in columns if column.kind == "text"}
    for before, after in PAIRS:
        if before in texts and after in texts and _is_text(texts[after], rows):
            used = [texts[before], texts[after]]
            return {"prompt": used[0].name, "completion": used[1].name}, used
    return None


def _label(columns: Sequence[Column], rows: int, has_inputs: bool) -> Column | None:
    """The column that is most likely what is to be learned."""

    def offers() -> Iterator[Column]:
        plain = [c for c in columns if c.kind in ("class", "text", "number") and c.distinct > 1]
        by_name = {column.name.lower(): column for column in plain}
        yield from (by_name[name] for name in LABELS if name in by_name)
        few = [c for c in plain if not _is_text(c, rows) and c.name.lower() not in MIXTURE]
        few = [c for c in few if c.counts is not None and is_classes(c, rows)]
        yield from (c for c in few if c.kind == "class")
        yield from (c for c in reversed(few) if c.kind == "text")
        numbers = [c for c in plain if c.kind == "number"]
        if not has_inputs and len(numbers) > 1:
            yield numbers[-1]
        yield from (c for c in reversed(few) if c.kind == "number")

    return next(offers(), None)


def _is_text(column: Column, rows: int) -> bool:
    if column.kind != "text":
        return False
    many = column.distinct > min(FEW_CLASSES, rows // 2)
    return many and (column.name.lower() in TEXTS or column.blanks > 0.5)


def _gaps(column: Column) -> str:
    """Why a column of numbers is no feature."""
    if column.missing:
        return f"{column.missing:,} rows have none; fill them to use it"
    return "" if column.width else "lists of different lengths"


def _useless(column: Column, rows: int) -> str:
    """Why nothing can be learned from a column, or with it."""
    if column.kind == "other":
        return "neither numbers, texts nor pictures"
    if column.kind == "image":
        return "" if column.sizes else "bytes that are no pictures; see data.columns.image_shape"
    if column.distinct <= 1:
        return "the same in every row"
    if column.distinct < rows or column.name.lower() in LABELS:
        return ""
    a_range = column.whole and column.high - column.low == rows - 1
    a_word = column.kind == "text" and not column.blanks and column.high <= SHORT
    called = column.name.lower() in {*TEXTS, *chain(*PAIRS)}
    an_id = a_range if column.kind == "number" else a_word and not called
    return "another in every row: an id" if an_id else ""


def _others(
    columns: Sequence[Column], used: Sequence[Column], unused: Mapping[str, str]
) -> dict[str, str]:
    """Why the columns that are not used are not."""
    names = {column.name for column in used}
    words = "words; give each a column of 0 and 1 to use them"
    only = f"only {' and '.join(sorted(names))} count here"
    beside = words if used[0].kind.startswith("number") else only
    return {
        c.name: unused.get(c.name) or (_gaps(c) if c.kind.startswith("number") else "") or beside
        for c in columns
        if c.name not in names
    }
