"""Exports are what the tools' own libraries read, where they are installed, and what comes back."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import PIL.Image
import polars as pl
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value

from curate.errors import OptionError, OutputError
from curate.output import saved_run
from curate.output.export import TOOLS, export_run
from curate.output.inspect import inspect_run
from curate.output.saved_run import LABELS
from curate.output.scores import SavedScores
from curate.recipe import Recipe
from tests.output.made import HOSTILE, ON_TEXT, made, recipe, texts

CLASSES = ["ham", "spam & <eggs>"]
ON_LABELS = recipe(
    {"text": "text", "label": "label"},
    objective="sequence_classification",
    model={"pretrained": "tiny"},
)
ON_PICTURES = recipe({"features": ["image"], "label": "label"})


def labelled(count: int = 12) -> Dataset:
    features = Features(
        {"text": Value("string"), "label": ClassLabel(names=CLASSES), "size": Value("int64")}
    )
    lines = [HOSTILE[i] if i < len(HOSTILE) else f"text {i}" for i in range(count)]
    rows = {"text": lines, "label": [i % 2 for i in range(count)], "size": [*range(count)]}
    return Dataset.from_dict(rows, features=features)


def pictures(count: int = 6) -> Dataset:
    shades = [PIL.Image.fromarray(np.full((5, 8), 40 * i, np.uint8)) for i in range(count)]
    features = Features({"image": Image(), "label": ClassLabel(names=CLASSES)})
    rows = {"image": shades, "label": [i % 2 for i in range(count)]}
    return Dataset.from_dict(rows, features=features)


def suspecting(folder: Path, table: Dataset, by: Recipe) -> Path:
    """A run whose last two rows have the other label, as far as a model can tell."""
    noted = {"asked": 3, "suspected": 2, "sure": 0.9, "classes": CLASSES}
    made(folder, table, by, report=False, labels=noted)
    last = 10 + len(table) - 1
    given = [CLASSES[table["label"][row - 10]] for row in (last - 2, last - 1, last)]
    other = [next(name for name in CLASSES if name != label) for label in given]
    lines = {
        "row": [last - 2, last - 1, last],
        "is_label_issue": [False, True, True],
        "label_score": [0.6, 0.02, 0.01],
        "given_label": given,
        "predicted_label": [given[0], *other[1:]],
        "probability": [0.6, 0.98, 0.99],
    }
    pl.DataFrame(lines).write_parquet(folder / LABELS)
    return folder


@pytest.fixture(scope="module")
def on_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return suspecting(tmp_path_factory.mktemp("text") / "run", labelled(), ON_LABELS)


@pytest.fixture(scope="module")
def on_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return suspecting(tmp_path_factory.mktemp("pictures") / "run", pictures(), ON_PICTURES)


def export(run: Path, to: str, out: Path, only: str | None = None, most: int = 1000) -> list[str]:
    return export_run(run, to, out, only=only, most=most)


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_csv_has_cleanlabs_columns_and_the_label_to_correct(
    on_text: Path, tmp_path: Path
) -> None:
    export(on_text, "cleanlab", tmp_path / "out")
    table = pl.read_csv(tmp_path / "out" / "label_issues.csv")
    first = ["row", "is_label_issue", "label_score", "given_label", "predicted_label", "label"]
    assert table.columns[:6] == first
    assert {"score", "influence", "rank", "kept", "text", "size"} <= {*table.columns}
    assert table["row"].to_list() == [21, 20]  # the surest first
    assert table["label"].to_list() == table["given_label"].to_list() == [CLASSES[1], CLASSES[0]]
    assert table["predicted_label"].to_list() == [CLASSES[0], CLASSES[1]]
    assert table["size"].to_list() == [11, 10]


@pytest.mark.filterwarnings("ignore")  # of others
def test_cleanlab_has_these_columns() -> None:
    cleanlab = pytest.importorskip("cleanlab")
    lab = cleanlab.Datalab(data={"y": [0, 1] * 10}, label_name="y", verbosity=0)
    lab.find_issues(pred_probs=np.tile([0.6, 0.4], (20, 1)), issue_types={"label": {}})
    found = {*lab.get_issues("label").columns}
    assert found == {"is_label_issue", "label_score", "given_label", "predicted_label"}


@pytest.mark.parametrize("only", [None, "dropped", "kept"])
def test_rows_are_those_that_were_asked_for(
    on_text: Path, tmp_path: Path, only: str | None
) -> None:
    lines = export(on_text, "cleanlab", tmp_path / "out", only, most=2)
    rows = pl.read_csv(tmp_path / "out" / "label_issues.csv")["row"].to_list()
    assert rows == ([10, 11] if only == "kept" else [21, 20])
    assert lines[0].startswith(f"wrote 2 of {6 if only else 2} rows ({only or 'suspects'}) to ")
    with pytest.raises(OutputError, match="exists already, and may hold corrections"):
        export(on_text, "cleanlab", tmp_path / "out")


@pytest.mark.filterwarnings("ignore")
def test_argilla_reads_records_and_settings(
    on_text: Path, on_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(on_text, "argilla", tmp_path / "text")
    export(on_pictures, "argilla", tmp_path / "pictures")
    records = load(tmp_path / "text" / "records.json")
    assert [record["id"] for record in records] == ["21", "20"]
    assert records[0]["fields"] == {"text": "text 11", "columns": "size: 11"}
    known = {"value": CLASSES[0], "score": 0.99, "agent": "curate"}
    assert records[0]["suggestions"] == {"label": known}
    assert records[0]["metadata"]["row"] == 21
    argilla = pytest.importorskip("argilla")
    monkeypatch.setattr(argilla.Argilla, "_get_default", classmethod(lambda _: MagicMock()))
    for name, kind in (("text", "text"), ("pictures", "image")):
        folder = tmp_path / name
        settings = argilla.Settings.from_json(folder / ".argilla" / "settings.json")
        assert settings.fields[0].type == kind
        assert settings.questions["label"].labels == CLASSES
        from argilla.records._io._json import JsonIO

        for record in JsonIO._records_from_json(folder / "records.json"):
            assert record.suggestions["label"].value in CLASSES
            assert isinstance(record.metadata["row"], int)


@pytest.mark.filterwarnings("ignore")
def test_label_studio_takes_tasks_and_predictions(
    on_text: Path, on_pictures: Path, tmp_path: Path
) -> None:
    for run in (on_text, on_pictures):
        folder = tmp_path / run.parent.name
        export(run, "label-studio", folder)
        config = (folder / "label_config.xml").read_text(encoding="utf-8")
        assert [c.get("value") for c in ET.fromstring(config).iter("Choice")] == CLASSES
        tasks = load(folder / "tasks.json")
        (result,) = tasks[0]["predictions"][0]["result"]
        assert result["from_name"] == "label"
        assert result["value"]["choices"][0] in CLASSES
        assert result["to_name"] in tasks[0]["data"]
        assert tasks[0]["data"]["row"] == tasks[0]["meta"]["row"]
    assert tasks[0]["data"]["image"].startswith("data:image/")
    sdk = pytest.importorskip("label_studio_sdk.label_interface")
    for run in (on_text, on_pictures):
        folder = tmp_path / run.parent.name
        interface = sdk.LabelInterface((folder / "label_config.xml").read_text(encoding="utf-8"))
        interface.validate()
        for task in load(folder / "tasks.json"):
            assert all(task["data"][shown.value_name] for shown in interface.objects)
            for prediction in task["predictions"]:
                assert interface.validate_prediction(prediction, return_errors=True) == []


@pytest.mark.filterwarnings("ignore")
def test_fiftyone_reads_pictures_with_both_labels(on_pictures: Path, tmp_path: Path) -> None:
    export(on_pictures, "fiftyone", tmp_path / "out")
    samples = load(tmp_path / "out" / "samples.json")["samples"]
    assert [sample["row"] for sample in samples] == [15, 14]
    assert samples[0]["tags"] == ["suspect", "drop"]
    assert samples[0]["ground_truth"] == {"_cls": "Classification", "label": CLASSES[1]}
    seen = PIL.Image.open(tmp_path / "out" / samples[0]["filepath"])
    assert seen.size == (256, 160)
    assert seen.getpixel((100, 100)) == 200
    assert "version" not in load(tmp_path / "out" / "metadata.json")  # of a database's own format
    importers = pytest.importorskip("fiftyone.utils.data.importers")
    with importers.LegacyFiftyOneDatasetImporter(str(tmp_path / "out")) as importer:
        read = [*importer]
    assert [sample.prediction.label for sample in read] == [CLASSES[0], CLASSES[1]]


def test_rows_without_classes_are_kept_or_dropped(tmp_path: Path) -> None:
    made(tmp_path / "run", texts(), ON_TEXT, report=False)
    export(tmp_path / "run", "argilla", tmp_path / "argilla", "kept")
    (record, *_) = load(tmp_path / "argilla" / "records.json")
    assert record["suggestions"]["verdict"]["value"] == "keep"
    export(tmp_path / "run", "cleanlab", tmp_path / "csv")
    table = pl.read_csv(tmp_path / "csv" / "label_issues.csv")
    assert table["verdict"].to_list() == ["drop"] * 6
    export(tmp_path / "run", "label-studio", tmp_path / "tasks")
    with pytest.raises(OptionError, match="for pictures, and these rows have none"):
        export(tmp_path / "run", "fiftyone", tmp_path / "fiftyone")
    assert not (tmp_path / "fiftyone").exists()
    with pytest.raises(OptionError, match="no suspects rows to export: there are none"):
        export(tmp_path / "run", "argilla", tmp_path / "none", "suspects")


def test_a_row_is_shown_with_what_its_label_should_be(on_text: Path) -> None:
    text = " ".join(" ".join(inspect_run(on_text, row=21)).split())
    assert f"lacked the row finds {CLASSES[1]}, which it has, 1% likely" in text
    assert "lacked the row" not in " ".join(inspect_run(on_text, row=12))


def test_suspected_rows_are_stored_in_turn_with_the_worst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, table = suspecting(tmp_path / "run", labelled(), ON_LABELS), labelled()
    lines = pl.read_parquet(run / LABELS).with_columns(row=pl.Series([18, 17, 16]))
    lines.write_parquet(run / LABELS)
    monkeypatch.setattr(saved_run, "AT_A_TIME", 1)
    monkeypatch.setattr(saved_run, "STORED_BYTES", 100)
    saved_run.store_dropped(run, table, SavedScores(run / "scores.parquet"))
    stored = pl.read_parquet(run / "dropped.parquet")["row"].to_list()
    assert {16, 21} <= {*stored} <= {16, 17, 20, 21}


def test_the_command_has_every_tool() -> None:
    from curate.cli.export import export as command

    (option,) = (each for each in command.params if each.name == "to")
    assert [*option.type.choices] == [*TOOLS]
