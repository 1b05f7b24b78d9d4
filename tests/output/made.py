"""Directories as `curate select` leaves them, from made-up scores of any rows."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from datasets import Dataset
from numpy.typing import NDArray

from curate.output.composition import Judged, composition
from curate.output.directory import Selection, write_selection
from curate.output.page import leave_report
from curate.output.saved_run import store_dropped
from curate.output.scores import SavedScores
from curate.recipe import Recipe, check_recipe
from curate.runtime.parts import Parts
from curate.runtime.resume import staged

WINDOWS = [
    {"first_step": 0, "steps": 4, "target_loss": 1.5, "predicted": -0.2, "realized": -0.1},
    {"first_step": 4, "steps": 4, "target_loss": 0.75, "predicted": -0.1, "realized": -0.08},
    {"first_step": 8, "steps": 2, "target_loss": 0.5, "predicted": -0.1, "realized": None},
]
for _window, _signal, _error in zip(WINDOWS, (2e-3, 1e-3, 1e-3), (1e-4, 1e-4, 2e-4), strict=True):
    _window |= {"candidates": 9, "kept": 5, "signal": _signal, "error": _error}
TABLE = pl.DataFrame(WINDOWS)
HOSTILE = [
    "<script>document.title = 'owned'</script>",
    "</script><script>document.title = 'owned'</script>",
    "<!--<script>",
    '"><img src="https://example.org/x" onerror="document.title = 1">',
    "line\u2028separator\u2029 \x1b[31mred \u202eright to left \x00",
    "{{ 7 * 7 }}{% raw %}",
    "<b>bold</b> &lt; &amp;",
]


def recipe(columns: dict[str, Any], **sections: Any) -> Recipe:
    data = {"train": "rows.parquet", "columns": columns, "validation": {"fraction": 0.2}}
    on_text = "features" not in columns
    objective = {"objective": "causal_lm", "model": {"pretrained": "tiny"}} if on_text else {}
    return check_recipe({"data": data | sections.pop("data", {})} | objective | sections)


ON_TEXT = recipe({"text": "text"})
ON_LISTS = recipe({"features": ["x"], "label": "label"})


def texts(count: int = 12) -> Dataset:
    hostile = [HOSTILE[i] if i < len(HOSTILE) else f"text number {i}" for i in range(count)]
    return Dataset.from_dict({"text": hostile, "where": [HOSTILE[i % 2] for i in range(count)]})


def lines(score: NDArray[Any], kept: NDArray[Any]) -> pl.DataFrame:
    """Scores of rows 0, 1, 2 and so on, of no influence."""
    count = len(score)
    rank = np.empty(count, dtype=np.int64)
    rank[np.argsort(-score, kind="stable")] = np.arange(1, count + 1)
    columns = {"row": np.arange(count), "score": score, "rank": rank, "kept": kept}
    others = {"influence": pl.lit(None, pl.Float64), "reason": pl.lit("by hand"), "seen": 1}
    return pl.DataFrame(columns).with_columns(**others)


def made(
    folder: Path,
    table: Dataset,
    by: Recipe | None,
    *,
    keep: float = 0.5,
    report: bool = True,
    **provenance: Any,
) -> Path:
    """Row 10 + i has the influence and the score of a descending line, the first kept.

    Without a `report`, which takes a second, there is neither page nor card.
    """
    count = len(table)
    kept = np.arange(count) < round(keep * count)
    scores = pl.DataFrame(
        {
            "row": np.arange(10, 10 + count),
            "influence": np.linspace(2e-3, -1e-3, count),
            "score": np.linspace(1.5, -1.5, count),
            "rank": np.arange(1, count + 1),
            "kept": kept,
            "reason": ["top by score" if k else "below the budget" for k in kept],
            "seen": np.full(count, 2),
            "error": np.full(count, 1e-4),
        }
    )
    facts = {"policy": "look_ahead", "steps": 10, "device": "cpu"}
    judged = Judged(kept, scores["influence"].to_numpy(), scores["seen"].to_numpy())
    facts |= {"composition": composition(table, judged, by)}
    with staged(folder, overwrite=True) as stage:
        write_selection(stage, Selection(table, scores, facts | provenance, by, TABLE))
        parts = Parts()
        if report:
            leave_report(stage, table, parts)
        else:
            store_dropped(stage, table, SavedScores(stage / "scores.parquet"))
        assert parts.cause is None, parts.outcome()
    return folder


class Page(HTMLParser):
    """Elements of a page, and the text in each kind."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._open = self._open[: len(self._open) - 1 - self._open[::-1].index(tag)]

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]

    def drawings(self) -> list[dict[str, str | None]]:
        """The figures, other than pictures of rows."""
        return [i for i in self.all("img") if str(i["src"]).startswith("data:image/svg+xml;")]


def listing(text: str) -> list[dict[str, Any]]:
    """The rows of the table of a page."""
    match = re.search(r'<script type="application/json" id="rows-data">(.*?)</script>', text, re.S)
    assert match is not None
    entries: list[dict[str, Any]] = json.loads(match[1])
    return entries


SELECTED: dict[str, Any] = {
    "policy": "look_ahead",
    "candidates": 72,
    "kept": 36,
    "steps": 10,
    "device": "cpu",
    "processes": 1,
    "out": "out",
    "seconds": {"read": 0.1, "write": 1.26},
}


def way(name: str, gain: float, **others: Any) -> dict[str, Any]:
    """A way to train, as `Worth.row` has it."""
    ends = {"low": gain - 0.1, "high": gain + 0.1, "loss": 1 - gain, "last": 1 - gain}
    return (
        {"name": name, "rows": 50, "share": None, "judging": 12, "gain": gain, "metrics": {}}
        | ends
        | others
    )


WORTH: dict[str, Any] = {
    "answer": "pays",
    "share": None,
    "chosen": way("kept", 0.25),
    "tried": [way("kept", 0.25)],
    "against": [way("everything", 0.0), way("random", -0.1)],
    "judging": 12,
    "target_rows": 24,
    "steps": 32,
    "limit": 10,
}
