"""`curate init`: what it sees is there, and what it writes runs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_from_disk

from curate.cli.main import cli, run
from curate.cli.summary import describe_look
from curate.datasets import read
from curate.errors import CurateError, DataError, OutputError
from curate.pipeline.init import Asked, run_init
from curate.pipeline.reading import column_uses, find_reader
from curate.recipe import Recipe, load_recipe
from tests import words
from tests.datasets.test_folders import picture
from tests.job import curate

QUICK = ["--set", "training.epochs=2", "--set", "selection.judge=false"]
KEEP = ["--set", "selection.keep={fraction: 0.5}"]
HOSTILE = ["a: b", "[x]*", "# no", "two\nlines", "- \"'", "é猫🐈\u2028", "null"]


def init(data: str, out: str = "recipe.yaml", **known: Any) -> tuple[dict[str, Any], Recipe]:
    seen = run_init(Asked(data, **known), Path(out))
    assert all(len(line) <= 80 for line in describe_look(seen).splitlines())
    return seen, load_recipe(out)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def numbers(count: int = 200, **more: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 3))
    return {
        "id": [f"r{k}" for k in range(count)],
        **{f"x{k}": x[:, k].tolist() for k in range(3)},
        "label": ["up" if value > 0 else "down" for value in x[:, 0]],
        **more,
    }


def test_from_a_csv_to_a_kept_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    pl.DataFrame(numbers()).write_csv("rows.csv")
    assert run(cli, ["init", "rows.csv"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "rows.csv: 200 rows"
    assert said[3].split() == ["id", "not", "used", "another", "in", "every", "row:", "an", "id"]
    assert said[-2:] == [
        "  curate select recipe.yaml --plan   # how long it will take",
        "  curate select recipe.yaml",
    ]
    assert curate("recipe.yaml", "--plan") == 0
    assert curate("recipe.yaml") == 0
    kept = load_from_disk("out/recipe")["train"]
    assert kept.column_names == ["id", "x0", "x1", "x2", "label"]
    assert 0 < len(kept) <= 160


def test_what_is_alike_is_counted() -> None:
    rows = numbers()
    rows["label"][5], rows["label"][6] = "up", "down"
    for k in range(3):
        rows[f"x{k}"][6] = rows[f"x{k}"][5]  # the same features, another label
        rows[f"x{k}"][8] = rows[f"x{k}"][7]
    rows["label"][8] = rows["label"][7]
    pl.DataFrame(rows).write_csv("rows.csv")
    pl.DataFrame(rows)[:10].write_parquet("checked.parquet")
    seen, recipe = init("rows.csv", validation="checked.parquet")
    assert (seen["repeated"], seen["contradicting"], seen["shared"]) == (1, 2, 10)
    assert str(recipe.data.validation) == "checked.parquet"


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_hostile_names_survive(kind: str) -> None:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {name: rng.normal(size=60) for name in HOSTILE}
        | {"y: [": ["a", "b"] * 30, "#t": ["w"] * 60}
    )
    path = f"a #1: [b].{kind}"
    if kind == "jsonl":
        frame.write_ndjson(path)
    else:
        getattr(frame, f"write_{kind}")(path)
    _, recipe = init(path)
    assert recipe.data.train.path == path
    assert recipe.data.columns.features == HOSTILE
    assert recipe.data.columns.label == "y: ["


def test_what_it_saw_is_what_is_read() -> None:
    """Labels that look like numbers and are none, texts with blanks, empty cells."""
    Path("rows.csv").write_text(
        "code,remark\n" + "".join(f"00{k % 3},some words {k} \n" for k in range(60))
    )
    seen, recipe = init("rows.csv", label="code")
    assert seen["columns"][0] == ("code", "label", "3 classes: 000 20, 001 20, 002 20")
    assert recipe.data.columns.classes is None
    Path("amounts.csv").write_text("a,y\n" + "".join(f"+{k}.50,{k * k}\n" for k in range(60)))
    seen, recipe = init("amounts.csv", "amounts.yaml")
    assert recipe.objective == "regression"
    data = read("amounts.csv", uses=column_uses(recipe))
    examples = find_reader(recipe, data).examples(data, "amounts.csv")
    assert examples.labels is not None
    assert examples.labels.tolist() == [float(k * k) for k in range(60)]


def test_texts_with_labels(capsys: pytest.CaptureFixture[str]) -> None:
    words.texts(90).select_columns(["text", "label"]).to_csv("texts.csv")
    words.bert().save_pretrained("bert")
    words.tokenizer().save_pretrained("bert")
    seen, recipe = init("texts.csv")
    assert (seen["objective"], recipe.data.columns.text) == ("sequence_classification", "text")
    assert recipe.training.schedule.warmup_steps > 0
    own = ["--set", "model.pretrained=bert", "--set", "data.max_length=32"]
    assert curate("recipe.yaml", "--plan", *own) == 0
    assert curate("recipe.yaml", *own, *QUICK, *KEEP) == 0
    assert len(load_from_disk("out/recipe")["train"]) == recipe_rows(90, recipe) // 2


def recipe_rows(count: int, recipe: Recipe) -> int:
    assert recipe.data.validation is not None
    return count - round(recipe.data.validation.fraction * count)  # type: ignore[union-attr]


@pytest.mark.parametrize("form", ["messages", "prompt"])
def test_language_models(form: str) -> None:
    names = ["messages"] if form == "messages" else ["prompt", "completion"]
    words.texts(60).select_columns(names).to_json("rows.jsonl")
    _, recipe = init("rows.jsonl")
    assert (recipe.objective, recipe.data.columns.form) == ("causal_lm", form)
    words.gpt2().save_pretrained("tiny")
    words.tokenizer().save_pretrained("tiny")
    own = ["model={pretrained: tiny, lora: {rank: 2, target_modules: [c_attn]}}"]
    own += ["data.max_length=24", "training.batch_size=16"]
    if form == "prompt":  # the tokenizer has no template for conversations
        sets = [part for override in own for part in ("--set", override)]
        assert curate("recipe.yaml", *sets, *QUICK, *KEEP) == 0


def test_a_folder_of_pictures() -> None:
    for k in range(40):
        size = (20 + k % 7, 30)
        picture(
            Path(f"photos/{'ab'[k % 2]}/{k}.jpg"), 200 * (k % 2) + k, size, "L" if k % 5 else "RGB"
        )
    seen, recipe = init("photos")
    assert recipe.data.columns.image_size == [32, 32]
    assert seen["columns"][1] == ("label", "label", "2 classes: a 20, b 20")
    assert curate("recipe.yaml", *QUICK, *KEEP) == 0
    kept = load_from_disk("out/recipe")["train"]
    assert len(kept) == 16
    assert kept[0]["image"].size in {(20 + k, 30) for k in range(7)}


def test_a_saved_dataset_has_its_own_validation_split() -> None:
    kind = Features({"x": Value("float32"), "label": ClassLabel(names=["n", "y"])})
    rows = {"x": [k / 2 for k in range(40)], "label": [0, 1] * 20}
    part = Dataset.from_dict(rows, features=kind)
    DatasetDict({"train": part, "validation": part.select(range(10))}).save_to_disk("saved")
    seen, recipe = init("saved")
    assert (seen["shared"], seen["target_rows"]) == (10, 10)
    assert str(recipe.data.validation) == "saved validation"


def test_missing_labels_are_said() -> None:
    rows = numbers()
    rows["label"][3] = None
    pl.DataFrame(rows).write_parquet("rows.parquet")
    seen, _ = init("rows.parquet")
    assert seen["columns"][-1][2].startswith("1 missing; 2 classes: ")
    assert "1 rows have no label" in Path("recipe.yaml").read_text()


def test_nothing_is_overwritten_unasked_or_left_by_half(monkeypatch: pytest.MonkeyPatch) -> None:
    pl.DataFrame(numbers()).write_csv("rows.csv")
    Path("recipe.yaml").write_text("mine")
    with pytest.raises(OutputError, match=r"recipe.yaml: exists; give another --out"):
        init("rows.csv")
    with pytest.raises(OutputError, match="is a directory"):
        init("rows.csv", ".")
    with pytest.raises(OutputError, match="there is no directory no"):
        init("rows.csv", "no/recipe.yaml")
    Path("empty.csv").write_text("")
    with pytest.raises(DataError):
        run_init(Asked("empty.csv"), Path("recipe.yaml"), overwrite=True)
    assert Path("recipe.yaml").read_text() == "mine"
    run_init(Asked("rows.csv"), Path("recipe.yaml"), overwrite=True)
    assert load_recipe("recipe.yaml").data.train.path == "rows.csv"
    assert sorted(path.name for path in Path().iterdir()) == [
        "empty.csv",
        "recipe.yaml",
        "rows.csv",
    ]


@pytest.mark.parametrize("cells", [{"label": ["a"] * 9}, {"t": [json.dumps({"a": 1})] * 9}])
def test_what_cannot_be_learned_is_one_line(cells: dict[str, Any]) -> None:
    pl.DataFrame(cells).write_csv("rows.csv")
    with pytest.raises(CurateError) as error:
        init("rows.csv")
    assert "\n" not in str(error.value)
    assert not Path("recipe.yaml").exists()


def test_a_validation_file_needs_the_columns() -> None:
    pl.DataFrame(numbers()).write_csv("rows.csv")
    pl.DataFrame({"x0": [1.0]}).write_csv("checked.csv")
    with pytest.raises(DataError, match=r"checked.csv: there is no column x1"):
        init("rows.csv", validation="checked.csv")
