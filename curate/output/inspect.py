"""`curate inspect`: a finished run in the terminal. Loads no torch."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from curate.errors import OptionError
from curate.output.facts import Facts, asked, came_out, trust, why, worth
from curate.output.rows import Shown
from curate.output.saved_run import Run, lines_of, read_run
from curate.output.words import (
    Unit,
    cells,
    columns,
    count,
    evaluation_table,
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


def inspect_run(
    folder: Path, *, row: int | None = None, dropped: int | None = None,
    kept: int | None = None, label: str | None = None,
) -> list[str]:  # fmt: skip
    """Lines about a run: a summary, one row, or the worst dropped and best kept rows.

    Args:
        row: position in the source of the one row to look at.
        dropped, kept: how many of those to list, worst and best first.
        label: only rows of this label.

    Raises:
        UserError: the directory is none of curate's or damaged, or has no such row or label.
    """
    if row is not None and any(given is not None for given in (dropped, kept, label)):
        raise OptionError("--row shows one row; leave out --dropped, --kept and --label.")
    run = read_run(folder)
    width = min(MOST_WIDE, shutil.get_terminal_size((MOST_WIDE, 0)).columns)
    if row is not None:
        return _row(run, row, width)
    if dropped is None and kept is None and label is None:
        return _summary(run, width)
    return _lists(run, dropped, kept, label, width)


def _summary(run: Run, width: int) -> list[str]:
    lines = [visible(run.source), ""]
    sections = {
        "does choosing pay?": worth(run),
        "asked for": asked(run),
        "came out": came_out(run),
        "can the influences be trusted?": trust(run),
    }
    for title, facts in sections.items():
        lines += [title, *_facts(facts, width), ""]
    if (own := run.provenance.worth) is not None:
        lines += [*(f"  {line}" for line in columns(worth_cells(own.model_dump()))), ""]
    if run.provenance.evaluation:
        rows = [own.model_dump(exclude_unset=True) for own in run.provenance.evaluation]
        lines += [*(f"  {visible(line)}" for line in evaluation_table(rows)), ""]
    for name, parts in run.provenance.composition.items():
        body = [
            [visible(one_line(part.value)), f"{part.candidates:,}", f"{part.kept:,}",
             f"{part.kept / part.candidates:.0%}"]
            for part in parts if part.candidates
        ]  # fmt: skip
        if len(body) > MANY:
            lines += [f"{visible(name)}: {len(body)} values, in report.html", ""]
        elif body:
            lines += [*_indented([[visible(name), "rows", "kept", "share"], *body]), ""]
    if len(run.kept) < len(run.scores):
        lines += [f"the {FEW} worst", *_list(run, _rows(run, kept=False)[:FEW], width), ""]
    return [*lines, "more: --row N, --dropped N, --kept N, --label L; report.html"]


def _row(run: Run, row: int, width: int) -> list[str]:
    if row not in set(run.scores["row"].to_list()):
        rows = run.scores["row"].to_list()
        raise OptionError(
            f"--row {row}: is none of the {len(run.scores):,} candidates, which are among rows "
            f"{min(rows)} to {max(rows)} of {visible(run.source)}."
        )
    (line,) = lines_of(run, [row])
    lines = wrap(f"row {row} of {visible(run.source)}: {why(run, line)}", width)
    lines += ["", *_facts(_marks(run, line), width), ""]
    content = run.content(row)
    if content is None:
        return [
            *lines,
            *wrap(
                "Its content is not stored here: dropped.parquet has dropped rows up to a size. "
                f"It is row {row} of {visible(run.source)}.", width,
            ),
        ]  # fmt: skip
    for own in run.looks.row(content):
        lines += _content(own, width)
    return lines


def _marks(run: Run, line: dict[str, Any]) -> Facts:
    """What was found out about a row."""
    facts: Facts = []
    for name, value in line.items():
        if name.startswith("influence") and value is not None:
            unit = Unit([value])
            text = unit.write(value, named=True)
            error = line.get("error")
            if name == "influence" and error is not None:
                size = Unit([error]).write(error, signed=False, named=True)
                text += f", expected to be off by {size}"
            sense = "it helps" if value > 0 else "it harms" if value < 0 else "it does nothing"
            facts.append((visible(name), f"{text}: {sense}"))
    lowest = min(run.scores.filter("kept")["score"].to_list(), default=float("nan"))
    facts.append(("score", f"{signed(line['score'])}; the lowest kept is {signed(lowest)}"))
    facts.append(("seen", f"in {count(line['seen'], 'step')}"))
    if "tokens" in line:
        facts.append(("tokens", f"{line['tokens']:,}"))
    return facts


def _content(own: Shown, width: int) -> list[str]:
    indent = "  "
    if own.kind == "value":
        return _facts([(own.name, own.text)], width)
    lines = [own.name if own.picture is None else f"{own.name}: {own.text}"]
    if own.picture is not None:
        lines += [indent + drawn for drawn in _drawn(own, width - 2)]
    elif own.kind == "turns":
        for role, said in own.turns:
            lines += [indent + part for part in wrap(f"{role}: {said}", width - 2)]
    else:
        lines += [indent + part for part in wrap(own.text, width - 2)]
    return [*lines, ""]


def _drawn(own: Shown, width: int) -> list[str]:
    """A picture in blocks, two to a pixel; fuller where it is brighter, or a number higher."""
    assert own.picture is not None
    gray = own.picture.convert("L")
    gray.thumbnail((min(32, width // 2), 32))
    values = np.asarray(gray).astype(float) / 256
    if own.kind == "heat":
        values = 1 - 1 / 256 - values
    places = np.clip(values * len(SHADES), 0, len(SHADES) - 1).astype(int)
    return ["".join(SHADES[k] * 2 for k in line).rstrip() for line in places]


def _lists(
    run: Run, dropped: int | None, kept: int | None, label: str | None, width: int
) -> list[str]:
    rows: dict[bool, list[int]] = {side: _rows(run, kept=side) for side in (True, False)}
    lines = []
    if label is not None:
        labels = _labels(run)
        if label not in labels.values():
            known = sorted(set(labels.values()))
            some = ", ".join(known[:MANY]) + (", …" if len(known) > MANY else "")
            raise OptionError(
                f"--label {visible(label)}: no such label; there are {some or 'none'}."
            )
        rows = {side: [r for r in own if labels.get(r) == label] for side, own in rows.items()}
        lines.append(
            f"label {visible(label)}: {len(rows[True]):,} kept, {len(rows[False]):,} dropped"
        )
        if run.unstored:
            lines[0] += f", and maybe among the {run.unstored:,} dropped rows not stored here"
    most = {True: kept, False: dropped}
    if kept is dropped is None:
        most = {True: MANY, False: MANY}
    for side, word in ((True, "best kept"), (False, "worst dropped")):
        number, own = most[side], rows[side]
        if number is not None:
            shown = own[:number]
            title = (
                f"the {len(shown):,} {word} of {len(own):,}" if own else f"none {word[-7:].strip()}"
            )
            lines += [*([""] if lines else []), title, *_list(run, shown, width)]
    return lines


def _rows(run: Run, *, kept: bool) -> list[int]:
    """Rows kept, best first, or dropped, worst first."""
    rows: list[int] = run.scores.filter(run.scores["kept"] == kept)["row"].to_list()
    return rows if kept else rows[::-1]


def _labels(run: Run) -> dict[int, str]:
    """The label of every row that is stored."""
    name = run.looks.label
    if name is None:
        raise OptionError("--label: these rows have no label.")
    columns = {
        id(table): table.select_columns([name])[:][name].to_pylist()
        for table in (run.kept, run.dropped)
        if table is not None
    }
    return {
        row: str(run.looks.label_of({name: columns[id(table)][place]}))
        for row, (table, place) in run.places.items()
    }


def _list(run: Run, rows: list[int], width: int) -> list[str]:
    """A line per row: its numbers, and as much of its content as there is room for."""
    if not rows:
        return []
    lines = list(lines_of(run, rows))
    unit = Unit([line["influence"] for line in lines if line["influence"] is not None])
    label = run.looks.label
    head = ["row", "rank", "score", f"influence {f'({unit.name})' if unit.name else ''}".strip()]
    body = [
        [str(line["row"]), f"{line['rank']:,}", signed(line["score"]),
         unit.write(line["influence"])]
        for line in lines
    ]  # fmt: skip
    contents = []
    for own, content in zip(body, run.contents(rows), strict=True):
        if label is not None:
            known = "–" if content is None else one_line(str(run.looks.label_of(content)))
            own.append(fit(known, min(cells(known), 16)))
        shown = [] if content is None else run.looks.row(content)
        contents.append(one_line(run.looks.preview(shown)) or _picture(shown))
    table = _indented([[*head, *([] if label is None else [visible(label)])], *body])
    room = width - cells(table[0]) - 2
    if room < 12:
        return table
    return [
        table[0],
        *(f"{a}  {fit(b, room).rstrip()}" for a, b in zip(table[1:], contents, strict=True)),
    ]


def _picture(shown: list[Shown]) -> str:
    return next((own.text for own in shown if own.picture is not None), "not stored here")


def _indented(rows: list[list[str]]) -> list[str]:
    return [f"  {line}" for line in columns(rows)]


def _facts(facts: Facts, width: int) -> list[str]:
    """Names and texts side by side, the texts wrapped."""
    lines = []
    for name, text in facts:
        first, *rest = wrap(text, max(20, width - 18))
        lines.append(f"  {fit(name, 14)}  {first}" if cells(name) <= 14 else f"  {name}  {first}")
        lines += [" " * 18 + line for line in rest]
    return lines
