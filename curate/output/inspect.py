"""`curate inspect`: a finished run in the terminal. Loads no torch."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.errors import OptionError, OutputError
from curate.output.facts import every_fact
from curate.output.mixture import mixture
from curate.output.rows import Shown, in_python
from curate.output.saved_run import SavedRun, read_labels, read_run
from curate.output.shards import batches
from curate.output.words import (
    Scale,
    cells,
    columns,
    count,
    evaluation_cells,
    fit,
    one_line,
    signed,
    visible,
    worth_cells,
    wrap,
)

MANY = 20
"""Rows of a label that are listed where no number is given."""
FEW = 5
"""Worst rows in the summary."""
SHADES = " ░▒▓█"
MOST_WIDE = 100
WEIGHTS = (
    "A weight is a share of what is kept: draw rows of each value by it, all of its rows. "
    "Intervals are about rows, what others of the same values would come to under the same cut; "
    "not about another training, target or budget."
)


def inspect_run(
    folder: Path,
    *,
    row: int | None = None,
    dropped: int | None = None,
    kept: int | None = None,
    label: str | None = None,
) -> list[str]:
    """Lines about a run: a summary, one row, or the worst dropped and best kept rows.

    Args:
        row: position in the source of the one row to look at.
        dropped, kept: how many of those to list, worst and best first.
        label: only rows of this label.

    Raises:
        UserError: curate did not write the directory, it is damaged, or it has no such row or
            label.
    """
    lists = (dropped, kept, label) != (None, None, None)
    if row is not None and lists:
        raise OptionError("--row shows one row; leave out --dropped, --kept and --label.")
    run = read_run(folder)
    width = _width()
    if row is not None:
        return _row(run, row, width)
    if not lists:
        return _summary(run, width)
    if dropped is kept is None:
        dropped = kept = MANY
    return _lists(run, {"best kept": kept, "worst dropped": dropped}, label, width)


def inspect_mixture(
    folder: Path, by: str, *, weights: Path | None = None, as_json: bool = False
) -> list[str]:
    """Lines about the values of a column, and the weights to mix them by; see `mixture`.

    Args:
        weights: a file to write that to as JSON. as_json: whether to return that instead.

    Raises:
        UserError: as `inspect_run`, or the directory does not know the column, or nothing is kept.
    """
    mixed = mixture(read_run(folder), by)
    text = json.dumps(mixed.export(), indent=2)
    if weights is not None:
        from curate.runtime.files import write_whole_text  # loads torch

        try:
            write_whole_text(weights, f"{text}\n")
        except OSError as error:
            raise OutputError(f"{weights}: cannot be written: {error.strerror}.") from error
    if as_json:
        return [text]
    lines = [line for table in mixed.tables() for line in (*_indented(table), "")]
    words = [line for note in (mixed.note, WEIGHTS) if note for line in wrap(note, _width())]
    return [*lines, *words, *([] if weights is None else [f"wrote {weights}"])]


def _width() -> int:
    return min(MOST_WIDE, shutil.get_terminal_size((MOST_WIDE, 0)).columns)


def _summary(run: SavedRun, width: int) -> list[str]:
    made = run.provenance
    lines = [run.source, ""]
    for title, facts in every_fact(run).items():
        lines += [title[0].lower() + title[1:], *_facts(facts, width), ""]
    if "worth" in made:
        lines += [*_indented(worth_cells(made["worth"])), ""]
    if made.get("evaluation"):
        lines += [*_indented(evaluation_cells(made["evaluation"])), ""]
    for name, parts in made.get("composition", {}).items():
        body = [
            [
                one_line(part["value"]),
                f"{part['candidates']:,}",
                f"{part['kept']:,}",
                f"{part['kept'] / part['candidates']:.0%}",
            ]
            for part in parts
            if part["candidates"]
        ]
        if len(body) > MANY:
            lines += [f"{visible(name)}: {len(body)} values, see --by", ""]
        elif body:
            lines += [*_indented([[name, "rows", "kept", "share"], *body]), ""]
    if run.kept < len(run.scores):
        lines += [f"the {FEW} worst", *_list(run, run.scores.best(FEW, kept=False), width), ""]
    return [*lines, "more: --row N, --dropped N, --kept N, --label L, --by COLUMN; report.html"]


def _row(run: SavedRun, row: int, width: int) -> list[str]:
    scores = run.scores
    if not scores.lines([row]):
        raise OptionError(
            f"--row {row}: is none of the {len(scores):,} candidates, which are among rows "
            f"{scores.first} to {scores.last} of {run.source}."
        )
    (view,) = run.views([row])
    lines = wrap(f"row {row} of {run.source}: {view.why}", width)
    lines += ["", *_facts(_marks(run, view.line), width), ""]
    for column in view.shown:
        lines += _column(column, width)
    if not view.shown:
        lines += wrap(
            "Its content is not stored here: dropped.parquet has dropped rows up to a size. "
            f"It is row {row} of {run.source}.",
            width,
        )
    return lines


def _marks(run: SavedRun, line: dict[str, Any]) -> dict[str, str]:
    """The influences and the score of a row, in words."""
    facts = {}
    for name, value in line.items():
        if not name.startswith("influence") or value is None:
            continue
        text = Scale([value]).write(value, named=True)
        if name == "influence" and (error := line.get("error")) is not None:
            size = Scale([error]).write(error, sign="", named=True)
            text += f", expected to be off by {size}"
        sense = "it helps" if value > 0 else "it harms" if value < 0 else "it does nothing"
        facts[visible(name)] = f"{text}: {sense}"
    lowest = signed(run.scores.lowest_kept) if run.kept else "–"
    facts["score"] = f"{signed(line['score'])}; the lowest kept is {lowest}"
    if not line["kept"] and (line.get("influence") or 0) > 0:
        facts["score"] += ": others help more"
    known = read_labels(run.folder).filter(pl.col("row") == line["row"]).to_dicts()
    for label in known:
        given, other = (visible(label[f"{which}_label"]) for which in ("given", "predicted"))
        facts["label"] = (
            f"a model that lacked the row finds {given}, which it has, {label['label_score']:.0%} "
            f"likely, and most of all {other}, {label['probability']:.0%}"
        )
    facts["seen"] = f"in {count(line['seen'], 'step')}"
    return facts | ({"tokens": f"{line['tokens']:,}"} if "tokens" in line else {})


def _column(column: Shown, width: int) -> list[str]:
    """One column of a row: short values beside its name, anything else below it."""
    if column.kind == "value":
        return _facts({column.name: column.text}, width)
    if column.picture is not None:
        body = _drawn(column, width - 2)
        return [f"{column.name}: {column.text}", *(f"  {line}" for line in body), ""]
    turns = [f"{role}: {text}" for role, text in column.turns] or [column.text]
    body = [line for turn in turns for line in wrap(turn, width - 2)]
    return [column.name, *(f"  {line}" for line in body), ""]


def _drawn(column: Shown, width: int) -> list[str]:
    """A picture in blocks, two to a pixel; fuller where it is brighter, or a number higher."""
    assert column.picture is not None
    gray = column.picture.convert("L")
    gray.thumbnail((min(32, width // 2), 32))
    values = np.asarray(gray).astype(float) / 256
    if column.kind == "heat":
        values = 1 - 1 / 256 - values
    places = np.clip(values * len(SHADES), 0, len(SHADES) - 1).astype(int)
    return ["".join(SHADES[k] * 2 for k in line).rstrip() for line in places]


def _lists(
    run: SavedRun, most: Mapping[str, int | None], label: str | None, width: int
) -> list[str]:
    """Lists of rows by what they are, at most so many each; None for a list that is left out."""
    lines, counts = [], {"best kept": run.kept, "worst dropped": len(run.scores) - run.kept}
    labeled = None
    if label is not None:
        labeled = _labeled(run, label)
        of_kept = int((labeled < run.kept).sum())
        counts = dict(zip(counts, (of_kept, len(labeled) - of_kept), strict=True))
        kept, dropped = counts.values()
        head = f"label {visible(label)}: {kept:,} kept, {dropped:,} dropped"
        if run.unstored:
            head += f", and maybe among the {run.unstored:,} dropped rows not stored here"
        lines.append(head)
    for what, total in counts.items():
        if (number := most[what]) is None:
            continue
        listed = _rows(run, number, labeled, kept=what == "best kept")
        title = f"the {len(listed):,} {what} of {total:,}"
        if not total:
            title = f"none {what.split()[-1]}"
        lines += [*([""] if lines else []), title, *_list(run, listed, width)]
    return lines


def _rows(run: SavedRun, most: int, labeled: NDArray[np.int64] | None, *, kept: bool) -> list[int]:
    """Rows kept, best first, or dropped, worst first; of those labeled, see `_labeled`."""
    if labeled is None:
        return run.scores.best(most, kept=kept)
    if kept:
        return run.scores.best(most, kept=True, among=labeled[labeled < run.kept])
    rows = [run.dropped[place] for place in labeled[labeled >= run.kept] - run.kept]
    lines = run.scores.lines(rows)
    return sorted(rows, key=lambda row: -lines[row]["rank"])[:most]


def _labeled(run: SavedRun, label: str) -> NDArray[np.int64]:
    """Where the rows of a label are stored, shape (n,), ascending.

    Raises:
        OptionError: there are none.
    """
    name = run.viewer.label
    if name is None:
        raise OptionError("--label: these rows have no label.")
    places, names, first = [np.zeros(0, np.int64)], set[str](), 0
    for part in batches(run.content.select_columns([name])):
        values = in_python(part.column(name))
        own = [str(run.viewer.label_of({name: value})) for value in values]
        places.append(first + np.flatnonzero([text == label for text in own]))
        names, first = names | {*own}, first + len(own)
    if label not in names:
        some = ", ".join(sorted(names)[:MANY]) + (", …" if len(names) > MANY else "")
        raise OptionError(f"--label {visible(label)}: no such label; there are {some or 'none'}.")
    return np.concatenate(places)


def _list(run: SavedRun, rows: Sequence[int], width: int) -> list[str]:
    """A line per row: its numbers, and as much of its content as there is room for."""
    if not rows:
        return []
    views = list(run.views(rows))
    influences = [view.line["influence"] for view in views]
    scale = Scale([influence for influence in influences if influence is not None])
    head = ["row", "rank", "score", f"influence ({scale.name})" if scale.name else "influence"]
    body, contents = [], [""]
    for view, influence in zip(views, influences, strict=True):
        line = view.line
        body.append([str(line["row"]), f"{line['rank']:,}", signed(line["score"])])
        body[-1].append(scale.write(influence))
        if run.viewer.label is not None:
            label = one_line(view.label or "–")
            body[-1].append(fit(label, min(cells(label), 16)))
        drawing = "not stored here" if view.picture is None else view.picture.text
        contents.append(one_line(view.preview) or drawing)
    label_head = [] if run.viewer.label is None else [run.viewer.label]
    table = _indented([[*head, *label_head], *body])
    room = width - cells(table[0]) - 2
    if room < 12:
        return table
    return [f"{a}  {fit(b, room)}".rstrip() for a, b in zip(table, contents, strict=True)]


def _indented(rows: list[list[str]]) -> list[str]:
    """A table, indented; what would do something to a terminal is spelled out."""
    return [f"  {line}" for line in columns([[visible(cell) for cell in row] for row in rows])]


def _facts(facts: Mapping[str, str], width: int) -> list[str]:
    """Names and texts side by side, the texts wrapped."""
    lines = []
    for name, text in facts.items():
        first, *rest = wrap(text, max(20, width - 18))
        lines.append(f"  {fit(name, 14)}  {first}" if cells(name) <= 14 else f"  {name}  {first}")
        lines += [" " * 18 + line for line in rest]
    return lines
