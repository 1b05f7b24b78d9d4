"""`curate export`: rows of a finished run as annotation tools import them, labels to be corrected.

Each comes with the number of its row, by which `data.relabelled` reads the label back.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import datasets
import PIL.Image
import polars as pl

from curate.errors import OptionError, OutputError
from curate.output.page import picture_uri
from curate.output.rows import Shown
from curate.output.saved_run import RowView, SavedRun, read_labels, read_run
from curate.output.words import count
from curate.recipe.names import find_objective

VERDICT, WORDS = "verdict", ("keep", "drop")
"""The question about rows without a class, and its answers."""
SMALLEST, LARGEST = 256, 1024
"""Pixels that a picture's longer side gets where it has fewer; and that it has at most in JSON."""
COUNTED = ("string", "large_string", "bool", "int", "uint")


@dataclass(frozen=True)
class Item:
    """A row to look at, and what is known of its label, in words.

    issue: whether the label is suspected to be wrong. given: what it has; predicted: what it should
    have, as far as anybody knows; label_score, probability: how likely the model finds each.
    """

    view: RowView
    given: str | None
    predicted: str | None
    issue: bool = False
    label_score: float | None = None
    probability: float | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """Its numbers, without those that are not known."""
        names = ("row", "score", "influence", "rank", "kept")
        facts = {name: self.view.line[name] for name in names} | {"label_score": self.label_score}
        return {name: value for name, value in facts.items() if value is not None}


@dataclass(frozen=True)
class Export:
    """Rows of a run and what is asked about them.

    question: the column of labels, or `VERDICT`; answers: all labels.
    """

    run: SavedRun
    items: Sequence[Item]
    question: str
    answers: Sequence[str]

    def content(self, item: Item) -> list[Shown]:
        """The columns of a row but pictures and its label."""
        label = self.run.viewer.label
        known = (label, f"right {label}")
        return [c for c in item.view.shown if c.picture is None and c.name not in known]

    def fields(self, item: Item) -> dict[str, str]:
        """What to look at, by a name that every tool takes: the picture, texts, all else in one."""
        fields, others = dict[str, str](), list[str]()
        if (found := item.view.picture) is not None and found.picture is not None:
            fields["image"] = picture_uri(_large_enough(found.picture), LARGEST)
        for column in self.content(item):
            if column.kind in ("text", "turns"):
                fields[_slug(column.name)] = column.text
            else:
                others.append(f"{column.name}: {column.text}")
        return fields | ({"columns": "\n".join(others)} if others else {})


def export_run(folder: Path, to: str, out: Path, *, only: str | None, most: int) -> list[str]:
    """Write rows of a run to a directory, as a tool imports them; returns lines about it.

    Args:
        to: a key of `TOOLS`. only: suspects, the surest first; dropped, the worst first; or kept,
            the best first. Suspects where there are any, otherwise dropped, if None.
        most: how many.

    Raises:
        UserError: curate did not write the directory, it has no such rows, or `out` is there.
    """
    from curate.runtime.resume import staged  # loads torch

    if out.exists():
        raise OutputError(f"{out}: exists already, and may hold corrections; choose another --out.")
    run, labels = read_run(folder), read_labels(folder)
    suspects = labels.filter("is_label_issue").sort("label_score")["row"].to_list()
    only = only or ("suspects" if suspects else "dropped")
    total = {"suspects": len(suspects), "kept": run.kept, "dropped": len(run.scores) - run.kept}
    rows = suspects[:most]
    if only != "suspects":
        rows = run.scores.best(most, kept=only == "kept")
    items = _items(run, rows, labels)
    if not items:
        why = "there are none" if not total[only] else "their content is not stored in it"
        raise OptionError(f"{folder}: no {only} rows to export: {why}; choose with --only.")
    export = Export(run, items, *_question(run, labels, items))
    with staged(out, overwrite=False) as stage:
        then = TOOLS[to](export, stage)
    lines = [f"wrote {len(items):,} of {total[only]:,} rows ({only}) to {out}"]
    if len(items) < len(rows):
        lines.append(f"{count(len(rows) - len(items), 'row')} left out: not stored in {folder}")
    return [*lines, then.format(out=out)]


def _items(run: SavedRun, rows: Sequence[int], labels: pl.DataFrame) -> list[Item]:
    """Those of some rows whose content is stored."""
    known = {line["row"]: line for line in labels.filter(pl.col("row").is_in(rows)).to_dicts()}
    items, asked = list[Item](), _classes(run, labels)
    for view in run.views(rows):
        line = known.get(view.line["row"])
        if not view.shown:
            continue
        if line is not None:
            of = {"given": line["given_label"], "predicted": line["predicted_label"]}
            names = ("label_score", "probability")
            numbers = {name: line[name] for name in names}
            items.append(Item(view, **of, issue=line["is_label_issue"], **numbers))
        elif asked:
            items.append(Item(view, view.label, None))
        else:
            items.append(Item(view, None, WORDS[not view.line["kept"]]))
    return items


def _classes(run: SavedRun, labels: pl.DataFrame) -> bool:
    """Whether rows have labels, and they are classes."""
    label = run.viewer.label
    if len(labels) or label is None:
        return label is not None
    if run.recipe is not None and find_objective(run.recipe.objective).label == "numbers":
        return False
    feature = run.content.features[label]
    named = isinstance(feature, datasets.ClassLabel)
    return named or getattr(feature, "dtype", "").startswith(COUNTED)


def _question(
    run: SavedRun, labels: pl.DataFrame, items: Sequence[Item]
) -> tuple[str, Sequence[str]]:
    """What is asked about rows, and the answers."""
    if not _classes(run, labels):
        return VERDICT, WORDS
    noted = run.provenance.get("labels", {}).get("classes", [])
    seen = sorted({item.given for item in items if item.given is not None})
    return str(run.viewer.label), [*dict.fromkeys([*noted, *seen])]


def _cleanlab(export: Export, stage: Path) -> str:
    """A CSV with the columns of `Datalab.get_issues("label")`, then numbers and content."""
    lines = []
    for item in export.items:
        found = {
            "row": item.view.line["row"],
            "is_label_issue": item.issue,
            "label_score": item.label_score,
            "given_label": item.given,
            "predicted_label": item.predicted,
        }
        facts, answer = item.facts, item.given or item.predicted
        first = {**found, export.question: answer, **facts}
        content = {
            column.name: column.text if column.number is None else repr(column.number)
            for column in export.content(item)
        }
        lines.append(first | {name: content[name] for name in content if name not in first})
    pl.DataFrame(lines, infer_schema_length=None).write_csv(stage / "label_issues.csv")
    if export.question == VERDICT:
        return "one line per row: label_issues.csv"
    return (
        f"correct the column {export.question} of label_issues.csv, then: curate select RECIPE "
        "--relabelled {out}/label_issues.csv"
    )


def _argilla(export: Export, stage: Path) -> str:
    """A directory for `rg.Dataset.from_disk` of Argilla 2."""
    records, names, question = [], dict[str, None](), _slug(export.question)
    for item in export.items:
        fields = export.fields(item)
        names |= dict.fromkeys(fields)
        known = {"value": item.predicted, "score": item.probability, "agent": "curate"}
        metadata = {**item.facts, "kept": "yes" if item.view.line["kept"] else "no"}
        metadata |= {} if item.given is None else {"given": item.given}
        records.append(
            {
                "id": str(item.view.line["row"]),
                "fields": fields,
                "metadata": metadata,
                "suggestions": {} if item.predicted is None else {question: known},
                "responses": {},
                "vectors": {},
            }
        )
    kinds = {"row": "integer", "rank": "integer", "kept": "terms", "given": "terms"}
    kinds |= dict.fromkeys(("score", "influence", "label_score"), "float")
    options = [{"value": answer, "text": answer} for answer in export.answers]
    asked = {"type": "label_selection", "options": options}
    guidelines = f"Rows of {export.run.source}, chosen by curate: which {question} is right?"
    shared = {"guidelines": guidelines, "allow_extra_metadata": True}
    (stage / ".argilla").mkdir()
    settings = {
        **shared,
        "fields": [
            {
                "name": name,
                "title": name,
                "required": all(name in record["fields"] for record in records),
                "settings": {"type": "image" if name == "image" else "text"},
            }
            for name in names
        ],
        "questions": [{"name": question, "settings": asked, "required": True}],
        "metadata": [
            {"name": name, "title": name, "settings": {"type": kind}}
            for name, kind in kinds.items()
        ],
        "vectors": [],
        "distribution": {"strategy": "overlap", "min_submitted": 1},
    }
    _write(stage / ".argilla" / "settings.json", settings)
    name = {"name": _slug(export.run.folder.resolve().name)}
    _write(stage / ".argilla" / "dataset.json", name | shared)
    _write(stage / "records.json", records)
    return 'import it with: rg.Dataset.from_disk("{out}", client=client)'


def _label_studio(export: Export, stage: Path) -> str:
    """Tasks with predictions, and the configuration of a project for them."""
    shown = [export.fields(item) for item in export.items]
    names = [*dict.fromkeys(name for fields in shown for name in fields)]
    question, tasks = _slug(export.question), []
    asked = {"from_name": question, "to_name": names[0], "type": "choices"}
    for item, fields in zip(export.items, shown, strict=True):
        known: dict[str, Any] = {"model_version": "curate"}
        known["result"] = [{**asked, "value": {"choices": [item.predicted]}}]
        known |= {} if item.probability is None else {"score": item.probability}
        row = {"row": item.view.line["row"], "given": item.given or ""}
        tasks.append(
            {
                "data": {name: fields.get(name, "") for name in names} | row,
                "meta": item.facts,
                "predictions": [] if item.predicted is None else [known],
            }
        )
    parts = [
        f'  <{"Image" if name == "image" else "Text"} name={quoteattr(name)} value="${name}"/>'
        for name in names
    ]
    choices = [f"    <Choice value={quoteattr(answer)}/>" for answer in export.answers]
    head = f'  <Choices name={quoteattr(question)} toName="{names[0]}" choice="single">'
    lines = ["<View>", *parts, head, *choices, "  </Choices>", "</View>", ""]
    (stage / "label_config.xml").write_text("\n".join(lines), encoding="utf-8")
    _write(stage / "tasks.json", tasks)
    return "a project with the labels of {out}/label_config.xml imports {out}/tasks.json"


def _fiftyone(export: Export, stage: Path) -> str:
    """A `FiftyOneDataset` of pictures."""
    if any(item.view.picture is None for item in export.items):
        raise OptionError("--to fiftyone: is for pictures, and these rows have none.")
    (stage / "data").mkdir()
    samples = []
    for item in export.items:
        path, shown = f"data/{item.view.line['row']}.png", item.view.picture
        assert shown is not None
        assert shown.picture is not None
        _large_enough(shown.picture).save(stage / path)
        sample = {
            "filepath": path,
            "tags": [*(["suspect"] if item.issue else []), WORDS[not item.view.line["kept"]]],
            **item.facts,
        }
        if item.given is not None:
            sample["ground_truth"] = {"_cls": "Classification", "label": item.given}
        if item.predicted is not None:
            known = {"label": item.predicted, "confidence": item.probability}
            sample["prediction"] = {"_cls": "Classification", **known}
        samples.append(sample)
    info = {"source": export.run.source, "classes": [*export.answers]}
    _write(stage / "metadata.json", {"media_type": "image", "info": info})
    _write(stage / "samples.json", {"samples": samples})
    return 'import it with: fo.Dataset.from_dir("{out}", dataset_type=fo.types.FiftyOneDataset)'


TOOLS: Mapping[str, Callable[[Export, Path], str]] = {
    "argilla": _argilla,
    "label-studio": _label_studio,
    "fiftyone": _fiftyone,
    "cleanlab": _cleanlab,
}
"""What fills a directory for each tool, and says what to do with it."""


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def _slug(name: str) -> str:
    """A name of small letters, digits, - and _, which all tools take."""
    return re.sub(r"[^a-z0-9_-]+", "_", name.lower()).strip("_-") or "column"


def _large_enough(picture: PIL.Image.Image) -> PIL.Image.Image:
    """A picture, its pixels repeated where they are too few to see."""
    times = SMALLEST // max(picture.size)
    size = (picture.width * times, picture.height * times)
    return picture if times < 2 else picture.resize(size, PIL.Image.Resampling.NEAREST)
