"""`Scorer`: rows of any form get the scores that the selection predicted for them."""

import io
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import polars as pl
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Image

from curate import Scorer
from curate.errors import CurateError, DataError, OutputError, UserError
from curate.pipeline import reading
from curate.pipeline.scorer import ARRAYS, FACTS, FOLDER
from curate.pipeline.select import run_select
from curate.recipe import load_recipe
from tests import words
from tests.job import RECIPE, rows

SAMPLED = ("score={sample: 110}", "data.label_noise=null", "data.test=null", "selection.rounds=1")
ADDED = {"score": pl.Float64, "low": pl.Float64, "high": pl.Float64, "kept": pl.Boolean}


def selected(data: Dataset, *overrides: str, recipe: str = RECIPE) -> pl.DataFrame:
    """Select in the working directory; the candidates, with what was found for each."""
    data.to_parquet("rows.parquet")
    Path("recipe.yaml").write_text(recipe)
    run_select(load_recipe("recipe.yaml", [*SAMPLED, *overrides]), Path("kept"), overwrite=True)
    scores = pl.read_parquet("kept/scores.parquet").sort("row")
    return data[scores["row"].to_list()], scores


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset, pl.DataFrame]:
    """A selection, its candidates, and their scores."""
    folder = tmp_path_factory.mktemp("plain")
    with chdir(folder):
        columns, scores = selected(rows(200))
    return folder / "kept", Dataset.from_dict(columns), scores


def agrees(found: Any, scores: pl.DataFrame) -> None:
    """Whether every row has what the selection says of it, but for rounding."""
    for name in ("score", "low", "high"):
        assert np.allclose(np.asarray(found[name], float), scores[name].to_numpy(), atol=1e-5)
    assert np.asarray(found["kept"]).tolist() == scores["kept"].to_list()


def in_parts(data: Dataset, size: int, form: Callable[[Dataset], Any]) -> Iterator[Any]:
    for first in range(0, len(data), size):
        yield form(data.select(range(first, min(first + size, len(data)))))


def table_of(data: Dataset) -> pa.Table:
    return data.with_format("arrow")[:]


def numpy_of(data: Dataset) -> dict[str, Any]:
    arrays = data.with_format("numpy")[:]
    return {name: np.asarray(values) for name, values in arrays.items()}


FORMS: dict[str, Callable[[Dataset], Any]] = {
    "lists": lambda data: data[:],
    "numpy": numpy_of,
    "torch": lambda data: data.with_format("torch")[:],
    "arrow": table_of,
    "chunked": lambda data: pa.concat_tables([table_of(data)[:1], table_of(data)[1:]]),
    "polars": lambda data: pl.from_arrow(table_of(data)),
    "pandas": lambda data: data.to_pandas(),
}


@pytest.mark.parametrize("form", FORMS)
def test_candidates_have_the_scores_of_the_selection_in_any_form_and_batch(
    plain: tuple[Path, Dataset, pl.DataFrame], form: str
) -> None:
    folder, data, scores = plain
    scorer = Scorer(folder)
    for size in (1, 7, len(data)):
        found = {name: list[Any]() for name in (*ADDED, "note")}
        for batch in in_parts(data.select(range(21)) if size == 1 else data, size, FORMS[form]):
            given = scorer(batch)
            assert type(given) is type(batch)
            for name in found:
                column = given[name]
                found[name] += column.to_pylist() if hasattr(column, "to_pylist") else [*column]
        agrees(found, scores.head(len(found["kept"])))
        assert found["note"] == data["note"][: len(found["note"])]


@pytest.mark.parametrize("form", [None, "arrow", "numpy", "torch", "pandas", "polars"])
def test_datasets_map(plain: tuple[Path, Dataset, pl.DataFrame], form: str | None) -> None:
    folder, data, scores = plain
    found = data.with_format(form).map(Scorer(folder), batched=True, batch_size=13)
    assert found.column_names == [*data.column_names, *ADDED]
    agrees(found.with_format(None)[:], scores)
    if form not in ("numpy", "torch"):  # which are of single precision
        assert found.with_format(None)[:]["x"] == data[:]["x"]
    stream = data.to_iterable_dataset().map(Scorer(folder), batched=True, batch_size=13)
    agrees(Dataset.from_list([*stream])[:], scores)


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
def test_polars_lazily(
    plain: tuple[Path, Dataset, pl.DataFrame], engine: str, tmp_path: Path
) -> None:
    folder, data, scores = plain
    data.to_polars().write_parquet(tmp_path / "more.parquet", row_group_size=20)
    lazy = Scorer(folder)(pl.scan_parquet(tmp_path / "more.parquet"))
    assert lazy.collect_schema() == {**data.to_polars().schema, **ADDED}
    collect: Any = {"engine": engine}
    agrees(lazy.collect(**collect), scores)
    kept = lazy.filter(pl.col("kept") & (pl.col("group") == 1)).select("note", "score")
    assert kept.collect(**collect)["note"].to_list() == [
        note
        for note, group, ok in zip(data["note"], data["group"], scores["kept"], strict=True)
        if ok and group == 1
    ]
    assert len(lazy.select("score").head(5).collect(**collect)) == 5


def test_pickled_it_is_the_same_until_the_selection_is_another(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns, scores = selected(rows(200))
    scorer = Scorer("kept")
    stored = pickle.dumps(scorer)
    scorer({name: values[:3] for name, values in columns.items()})
    assert pickle.dumps(scorer) == stored  # by which `datasets` knows what it has done already
    monkeypatch.chdir("/")
    agrees(pickle.loads(stored)(columns), scores)
    monkeypatch.chdir(here)
    selected(rows(200), "training.seed=1")
    assert pickle.dumps(Scorer("kept")) != stored
    with pytest.raises(OutputError, match="is another selection than before; make its Scorer anew"):
        pickle.loads(stored)


def test_several_threads_share_one(plain: tuple[Path, Dataset, pl.DataFrame]) -> None:
    folder, data, _ = plain
    scorer, batches = Scorer(folder), [*in_parts(data, 10, table_of)] * 3
    with ThreadPoolExecutor(4) as threads:
        found = [*threads.map(scorer, batches)]
    alone = Scorer(folder)
    assert [alone(batch) for batch in batches] == found


def png(shade: int) -> bytes:
    file = io.BytesIO()
    pixels = np.add.outer(np.arange(6), np.arange(6)) * 10 + shade
    PIL.Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def pictures(count: int = 200) -> Dataset:
    """Bright and dark ones, and every ninth named wrongly."""
    shades = np.random.default_rng(0).integers(0, 150, count).tolist()
    names = ["dark" if (s < 75) != (i % 9 == 0) else "bright" for i, s in enumerate(shades)]
    cells = [{"bytes": png(shade), "path": None} for shade in shades]
    return Dataset.from_dict({"x": cells, "label": names}).cast_column("x", Image())


def test_pictures_in_any_form(here: Path) -> None:
    _, scores = selected(pictures(), "model={kind: cnn, channels: [4]}")
    data, scorer = pictures().select(scores["row"].to_list()), Scorer("kept")
    found = data.map(scorer, batched=True, batch_size=30)
    agrees(found[:], scores)
    stored = table_of(data.cast_column("x", Image(decode=False)))
    again = table_of(found.cast_column("x", Image(decode=False)))["x"]
    assert again.to_pylist() == stored["x"].to_pylist()
    for form in ("lists", "polars", "arrow"):
        agrees(scorer(FORMS[form](data)), scores)
    agrees(scorer(stored.replace_schema_metadata(None)), scores)
    bare = [cell["bytes"] for cell in stored["x"].to_pylist()]
    agrees(scorer({"x": bare, "label": data[:]["label"]}), scores)
    numbers = {"x": np.zeros((2, 6, 6)), "label": ["dark", "bright"]}
    said = r"the rows: features are numbers of shape \(6, 6\), but the selection's are pictures of"
    with pytest.raises(DataError, match=said):
        scorer(numbers)
    elsewhere = {"x": [{"bytes": None, "path": "/etc/hostname"}], "label": ["dark"]}
    with pytest.raises(DataError, match="names '/etc/hostname', which is not below"):
        scorer(elsewhere)


def test_classes_are_told_by_their_names(here: Path) -> None:
    columns, scores = selected(rows(200))  # strings, which are numbered down, up
    data, scorer = Dataset.from_dict(columns), Scorer("kept")
    other = data.cast_column("label", ClassLabel(names=["up", "unknown", "down"]))
    for form in (None, "arrow"):
        agrees(other.with_format(form).map(scorer, batched=True).with_format(None)[:], scores)
    agrees(scorer(table_of(other)), scores)
    agrees(scorer(data.to_polars().with_columns(pl.col("label").cast(pl.Categorical))), scores)
    for label in ("sideways", None):
        with pytest.raises(DataError, match=r"label is 'sideways' at row 0, a|label is null"):
            scorer({"x": [[0.0] * 4], "label": [label]})


def test_numbers_of_classes_mean_what_they_did_in_training(here: Path) -> None:
    data = rows(200).cast_column("label", ClassLabel(names=["up", "down"]))
    columns, scores = selected(data)
    scorer = Scorer("kept")
    agrees(scorer(columns), scores)
    names = [data.features["label"].int2str(number) for number in columns["label"]]
    agrees(scorer({**columns, "label": names}), scores)


def test_quotas_of_groups_hold_for_each_and_others_keep_nothing(here: Path) -> None:
    columns, scores = selected(rows(200), "selection.group_by=group", "data.standardize=true")
    scorer = Scorer("kept")
    agrees(scorer(pl.DataFrame(columns)), scores)
    other = scorer({**columns, "group": [7] * len(scores)})
    assert not any(other["kept"])
    assert np.isfinite(other["score"]).all()
    with pytest.raises(DataError, match="the rows: have no column group, only x, label"):
        scorer({"x": columns["x"], "label": columns["label"]})


@pytest.mark.parametrize("keep", ["{threshold: 0.1}", "{fraction: 1.0}", "{count: 1}"])
def test_what_is_kept_is_what_the_budget_says(here: Path, keep: str) -> None:
    columns, scores = selected(rows(200), f"selection.keep={keep}")
    data = pl.DataFrame({name: columns[name] for name in ("x", "label")})
    agrees(Scorer("kept")(data), scores)
    more = Scorer("kept")(pl.DataFrame(rows(1000)[:]))
    if "count" not in keep:
        least = 0.1 if "threshold" in keep else -99
        assert more["kept"].to_list() == (more["score"] >= least).to_list()


def test_several_targets_and_numbers_to_predict(here: Path) -> None:
    data = rows(200).add_column("y", [x[1] for x in rows(200)["x"]])
    data.select(range(40)).to_parquet("a.parquet")
    data.select(range(40, 80)).to_parquet("b.parquet")
    columns, scores = selected(
        data,
        "objective=regression",
        "data.columns={features: [x], label: y}",
        "data.validation={a: a.parquet, b: b.parquet}",
        "selection.weights={a: 3, b: 1}",
    )
    assert {"influence/a", "influence/b"} <= {*scores.columns}
    agrees(Scorer("kept")(columns), scores)


def sentences(count: int, least: int = 2) -> list[str]:
    random, known = np.random.default_rng(0), " ".join(words.passages(60)).split()
    return [" ".join(random.choice(known, random.integers(least, 20))) for _ in range(count)]


def test_texts_and_those_that_are_too_short(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words.write(here)
    short = {"score": None, "low": None, "high": None, "kept": False}
    data = Dataset.from_dict({"text": sentences(220)})
    columns, scores = selected(
        data, "data.train=rows.parquet", "data.min_length=12", recipe=words.RECIPE
    )
    assert len(scores) < 0.8 * 220  # others were left out
    scorer = Scorer("kept")
    monkeypatch.delattr(reading, "cache_file")  # tokens of further rows are not kept
    agrees(scorer(columns), scores)
    frame = scorer(data.to_polars())
    assert frame.filter(pl.col("score").is_null())["kept"].sum() == 0
    of_candidates = frame[scores["row"].to_list()]
    agrees(of_candidates, scores)
    for texts in (["x", "y z"], [""]):
        found = scorer(pl.DataFrame({"text": texts}))
        assert found.select(*ADDED).to_dicts() == [short] * len(texts)
    assert np.isnan(scorer({"text": ["x"]})["score"]).all()
    mapped = Dataset.from_dict({"text": ["x"]}).map(scorer, batched=True)
    assert mapped[0] == {"text": "x", **short}
    agrees(pl.from_arrow(table_of(data.map(scorer, batched=True)))[scores["row"].to_list()], scores)


def test_another_model_than_it_learned_with_is_refused(here: Path) -> None:
    words.write(here)
    overrides = ("data.train=rows.parquet", "data.test=null")
    selected(Dataset.from_dict({"text": sentences(150)}), *overrides, recipe=words.RECIPE)
    Scorer("kept")
    config = Path("tiny/config.json")
    config.write_text(config.read_text() + " ")
    with pytest.raises(UserError, match="was learned with another model tiny than is there now"):
        Scorer("kept")


FACTORY = """
from torch import nn

def make(width=5):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))
"""


def test_code_runs_only_where_that_is_allowed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(here))
    Path("made_here.py").write_text(FACTORY)
    columns, scores = selected(rows(200), "model={factory: 'made_here:make'}")
    with pytest.raises(UserError, match=r"names code, which scoring runs: .*made_here:make"):
        Scorer("kept")
    agrees(Scorer("kept", run_code=True)(columns), scores)
    agrees(pickle.loads(pickle.dumps(Scorer("kept", run_code=True)))(columns), scores)
    import made_here

    monkeypatch.setattr(made_here.make, "__defaults__", (6,))
    with pytest.raises(UserError, match=r"model of 37 parameters, and its recipe's has 44 now"):
        Scorer("kept", run_code=True)(columns)


BAD: Mapping[str, tuple[dict[str, Any], str]] = {
    "missing": ({"x": [[0.0] * 4]}, r"the rows: have no column label, only x\."),
    "taken": (
        {"x": [[0.0] * 4], "label": ["up"], "low": [1.0]},
        "the rows: have a column low already; rename or drop it first",
    ),
    "null": ({"x": [[0.0] * 4, None], "label": ["up"] * 2}, "column x is null at row 1"),
    "nan": ({"x": [[0.0] * 3 + [np.nan]], "label": ["up"]}, "column x is NaN or infinite at row 0"),
    "ragged": ({"x": [[0.0] * 4, [1.0]], "label": ["up"] * 2}, "lists of different lengths"),
    "narrow": (
        {"x": [[0.0] * 3], "label": ["up"]},
        r"features are numbers of shape \(3,\), but the selection's are numbers of shape \(4,\)",
    ),
    "text": ({"x": ["a"], "label": ["up"]}, "column x holds"),
    "other": ({"x": [[0.0] * 4], "label": ["left"]}, "a label that the training data does not"),
}


@pytest.mark.parametrize("what", BAD)
def test_rows_that_cannot_be_scored_are_refused_in_a_line(
    plain: tuple[Path, Dataset, pl.DataFrame], what: str
) -> None:
    folder, data, scores = plain
    batch, said = BAD[what]
    scorer = Scorer(folder)
    for _ in range(2):
        with pytest.raises(DataError, match=said) as caught:
            scorer(batch)
        assert "\n" not in str(caught.value)
    agrees(scorer(data[:]), scores)  # and it goes on
    if what in ("missing", "taken"):
        with pytest.raises(DataError, match=said):
            scorer(pl.LazyFrame(batch))


def test_no_rows_and_columns_that_nobody_reads(plain: tuple[Path, Dataset, pl.DataFrame]) -> None:
    folder, data, scores = plain
    scorer = Scorer(folder)
    for form in ("lists", "arrow", "polars"):
        none = scorer(FORMS[form](data.select([])))
        assert len(none["score"]) == len(none["kept"]) == 0
    assert {*scorer({})} == {*ADDED}
    columns = {**data[:], "any": [object()] * len(data), "ragged": [[1], ["a"]] * (len(data) // 2)}
    agrees(scorer(columns), scores)
    frame = data.to_polars().with_columns(pl.Series("any", [object()] * len(data)))
    agrees(scorer(frame), scores)


def spoil(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / FOLDER / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


DAMAGE: Mapping[str, tuple[Callable[[Path], Any], str]] = {
    "no predictor": (
        lambda kept: (kept / FOLDER / FACTS).unlink(),
        r"kept: has nothing to score other rows with; select with `score: \{sample: N\}`",
    ),
    "no arrays": (lambda kept: (kept / FOLDER / ARRAYS).unlink(), "is damaged .*select again"),
    "half": (
        lambda kept: (kept / FOLDER / ARRAYS).write_bytes(
            (kept / FOLDER / ARRAYS).read_bytes()[:999]
        ),
        "is damaged",
    ),
    "no JSON": (lambda kept: (kept / FOLDER / FACTS).write_text("{"), "is damaged"),
    "a list": (lambda kept: spoil(kept, FACTS, lambda facts: [facts]), "is damaged"),
    "another format": (
        lambda kept: spoil(kept, FACTS, lambda facts: {**facts, "format": 9}),
        "is of format 9 and this curate knows 1; use the version that wrote it",
    ),
    "a fact less": (
        lambda kept: spoil(kept, FACTS, lambda facts: {k: facts[k] for k in facts if k != "cuts"}),
        "is damaged .cuts is missing",
    ),
    "another cut": (
        lambda kept: spoil(kept, FACTS, lambda facts: {**facts, "cuts": {"": 0.0}}),
        "is damaged .*predictor.json is not as it was written",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_predictor_is_refused_in_a_line(
    plain: tuple[Path, Dataset, pl.DataFrame], what: str, tmp_path: Path
) -> None:
    folder, _, _ = plain
    (tmp_path / "kept" / FOLDER).mkdir(parents=True)
    for name in (FACTS, ARRAYS):
        (tmp_path / "kept" / FOLDER / name).write_bytes((folder / FOLDER / name).read_bytes())
    Scorer(tmp_path / "kept")
    damage, said = DAMAGE[what]
    damage(tmp_path / "kept")
    with pytest.raises(CurateError, match=said) as caught:
        Scorer(tmp_path / "kept")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, OutputError)


def test_the_guide_shows_what_works(here: Path, plain: tuple[Path, Dataset, pl.DataFrame]) -> None:
    folder, data, scores = plain
    guide = (Path(__file__).parents[2] / "examples/README.md").read_text()
    _, _, rest = guide.partition("## A sample instead of all")
    lines = rest.partition("```python\n")[2].partition("```")[0].replace('"text"', '"note"')
    Path("kept").symlink_to(folder)
    Path("more").mkdir()
    data.to_parquet("more/0.parquet")
    names: dict[str, Any] = {"dataset": data, "table": table_of(data)}
    exec(lines, names)
    agrees(names["table"], scores)
    agrees(names["scored"].collect(), scores)
    assert len(names["best"]) == scores["kept"].sum()
