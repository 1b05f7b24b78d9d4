"""Score any rows with what a selection learned: a function of batches, for whoever has them."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from shutil import copymode
from threading import Lock
from typing import Any

import datasets
import numpy as np
import polars as pl
import pyarrow as pa
import torch
from datasets import Dataset
from datasets.table import table_cast

from curate import models
from curate.datasets import (
    Classes,
    Scaling,
    SourceExamples,
    TensorExamples,
    as_arrow,
    names_of,
    plain_table,
    refuse_outside,
    require_columns,
    with_columns,
)
from curate.errors import DataError, OutputError, UserError
from curate.pipeline.amortize import Amortized, Views
from curate.pipeline.build import choose_device
from curate.pipeline.candidates import Candidates, group_values, model_files
from curate.pipeline.job import Job
from curate.pipeline.reading import Known, find_reader
from curate.recipe import check_recipe, resolved
from curate.recipe.names import find_objective
from curate.runtime.files import (
    DamagedError,
    digest_of,
    read_sealed,
    write_sealed,
    write_whole_text,
)
from curate.runtime.threads import suitable_threads
from curate.selection import Array
from curate.selection.prediction import Predictor, Quality
from curate.trajectory import Task

FOLDER, FACTS, ARRAYS, FORMAT = "predictor", "predictor.json", "predictor.safetensors", 1
FACTS_HAVE = (
    *("format", "recipe", "features", "looks", "classes", "outputs", "layer", "labels", "cuts"),
    *("quality", "models"),
)
ARRAYS_HAVE = ("facts", "states", "directions", "predictor", "scaling")
ADDED = {"score": pa.float64(), "low": pa.float64(), "high": pa.float64(), "kept": pa.bool_()}
"""What every row gets: its predicted score, the ends of its 90 % interval, whether it is kept."""
ROWS, PICTURES = "the rows", "pictures"
"""What a batch is called in messages; what features are where they are not numbers."""


def write_predictor(folder: Path, job: Job, amortized: Amortized) -> None:
    """Write what was learned to a folder: facts as JSON, arrays as safetensors.

    job: of all candidates.
    """
    views, data, examples = amortized.views, job.data, job.data.examples
    scaling = examples.scaling if isinstance(examples, TensorExamples) else None
    facts = {
        "format": FORMAT,
        "recipe": resolved(job.recipe),
        "features": data.known.features,
        "looks": _looks(examples),
        "classes": None if data.known.classes is None else asdict(data.known.classes),
        "outputs": data.outputs,
        "layer": views.layer,
        "labels": views.classes,
        "cuts": dict(amortized.cuts),
        "quality": asdict(amortized.quality),
        "models": model_files(job.recipe),
    }
    arrays = {
        "facts": digest_of(facts),
        "states": list(views.states),
        "directions": list(views.directions),
        "predictor": amortized.predictor.saved(),
        "scaling": None if scaling is None else [scaling.shift, scaling.factor],
    }
    folder.mkdir()
    write_whole_text(folder / FACTS, json.dumps(facts, indent=2) + "\n")
    write_sealed(folder / ARRAYS, arrays)
    copymode(folder / FACTS, folder / ARRAYS)  # for whoever may read the rest


class Scorer:
    """Gives every row of a batch its predicted score, by what a selection learned (`score.sample`).

    Called with a batch of rows, it gives them back with `score`, `low`, `high` (90 % of scores are
    between) and `kept` (whether the selection would keep the row). A batch may be an Arrow table, a
    frame of Polars, lazy or not, or of pandas, or a mapping of columns:

        dataset.map(Scorer("kept"), batched=True)
        Scorer("kept")(pl.scan_parquet("more/*.parquet"))
        ray_dataset.map_batches(Scorer, fn_constructor_args=("kept",), batch_format="pyarrow")

    Scores do not depend on what else is in a batch, but for rounding. Rows shorter than
    `data.min_length` have no score (null, in mappings of arrays NaN) and are not kept, nor are rows
    of a group that the selection did not have. Classes are told by their names where a batch has
    names, or says which numbers stand for them; otherwise numbers mean what they did in training.

    Args:
        selection: a directory that `curate select` wrote of a recipe with `score`.
        device: auto, cpu or cuda.
        run_code: whether code that its recipe names may be run.

    Raises:
        UserError: it cannot be used; what to do is in the message.
    """

    def __init__(
        self, selection: str | Path, *, device: str = "auto", run_code: bool = False
    ) -> None:
        folder = Path(selection) / FOLDER
        self._facts, self._arrays = _read(folder)
        self._made_by = str(folder.parent.absolute()), device, run_code, self._arrays["facts"]
        self.recipe = check_recipe(self._facts["recipe"])
        if not run_code and (named := self.recipe.code()):
            raise UserError(
                f"{folder / FACTS}: names code, which scoring runs: {', '.join(named)}; look at "
                "it, and allow it (--run-code, run_code=True) if it is yours or you trust it."
            )
        self._reader = find_reader(self.recipe, Dataset.from_dict({}), self._known)
        before = self._facts["models"]
        for name, files in model_files(self.recipe).items():
            if before.get(name) != files:
                raise UserError(
                    f"{folder}: was learned with another {name} than is there now; bring that back "
                    "or select again."
                )
        self._device = choose_device(device)
        self._model: tuple[Task, Amortized, int] | None = None
        self._one_at_a_time = Lock()  # Polars calls from several threads, and the model is one

    @property
    def device(self) -> str:
        """Where the model is."""
        return str(self._device)

    @property
    def share(self) -> float:
        """Of the rows of its own that the selection kept."""
        return float(self._facts["quality"]["share"])

    @property
    def fingerprint(self) -> str:
        """What identifies all that scores depend on, but rows, versions and device."""
        return str(self._made_by[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, self._made_by  # with what it learned, so that `datasets` knows it by that

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        of_texts = self.recipe.data.columns
        names = [
            *self._facts["features"],
            *(of_texts.text, of_texts.prompt, of_texts.completion, of_texts.messages),
            *(self._reader.label, self.recipe.selection.group_by),
        ]
        return [*dict.fromkeys(name for name in names if name is not None)]

    def __call__(self, rows: Any) -> Any:
        """The rows, as they came, with `score`, `low`, `high` and `kept`.

        Raises:
            DataError: a column is missing, is there already, or holds what cannot be scored.
        """
        if isinstance(rows, pl.LazyFrame):
            schema = rows.collect_schema()
            self._refuse(schema.names())
            schema = pl.Schema({**schema, **pl.DataFrame(_nothing(0)).schema})
            return rows.map_batches(self, schema=schema, streamable=True)
        names = names_of(rows)
        self._refuse(names)
        found = self.scores(as_arrow(rows, [n for n in self.columns if n in names]), ROWS)
        columns = {n: pa.array(found[n], kind, from_pandas=True) for n, kind in ADDED.items()}
        return with_columns(rows, columns)

    def scores(self, rows: pa.Table, source: str, path: str | None = None) -> dict[str, Array]:
        """Of every row, by the names of `ADDED`.

        source: where rows come from, for messages. path: of their data, in whose folder there may
        be files that they name; None if they may name none.
        """
        with self._one_at_a_time:
            return self._scores(rows, source, path or source)

    def _scores(self, rows: pa.Table, source: str, path: str) -> dict[str, Array]:
        found = _nothing(len(rows))
        if not len(rows):
            return found
        data = self._read(rows, source, path)
        examples = self._reader.examples(data, source)
        if not len(examples):
            return found
        if (looks := _looks(examples)) != self._facts["looks"]:
            raise DataError(
                f"{source}: features are {looks}, but the selection's are {self._facts['looks']}."
            )
        if self._arrays["scaling"] is not None:
            assert isinstance(examples, TensorExamples)
            examples = examples.standardized_by(Scaling(*self._arrays["scaling"]))
        self._model = self._model or self._built(examples)
        task, amortized, flops = self._model
        with suitable_threads(flops):
            predicted = amortized.scores(task, examples)
        width, places = amortized.quality.width, examples.rows.numpy()
        found["score"][places] = predicted
        found["low"][places], found["high"][places] = predicted - width, predicted + width
        found["kept"][places] = predicted >= self._cuts(data, source)[places]
        return found

    def _read(self, rows: pa.Table, source: str, path: str) -> Dataset:
        """The columns that are read, pictures as such where nothing but training says so."""
        require_columns(rows, self.columns, source)
        table = plain_table(rows.select(self.columns))
        features = datasets.Features.from_arrow_schema(table.schema)
        for name in self._facts["features"]:
            if PICTURES in self._facts["looks"] and pa.types.is_struct(table.field(name).type):
                features[name] = datasets.Image()
        table = table_cast(table, features.arrow_schema)
        data = Dataset(table, datasets.DatasetInfo(features=features), fingerprint=source)
        if not self.recipe.data.train.outside_files:
            refuse_outside(data, path)
        return data

    def _refuse(self, names: Sequence[str]) -> None:
        """Raise DataError if rows with columns of these names cannot be scored."""
        if taken := [name for name in ADDED if name in names]:
            raise DataError(f"{ROWS}: have a column {taken[0]} already; rename or drop it first.")
        if names and (missing := [name for name in self.columns if name not in names]):
            raise DataError(
                f"{ROWS}: have no column {missing[0]}, only {', '.join(map(str, names))}."
            )

    @property
    def _known(self) -> Known:
        classes = self._facts["classes"]
        if classes is not None:
            names = {k: v if v is None else tuple(v) for k, v in classes.items() if k != "count"}
            classes = Classes(classes["count"], **names)
        return Known(self._facts["features"], classes)

    def _cuts(self, data: Dataset, source: str) -> Array:
        """The score from which on a row is kept, shape (n,); infinite where none is."""
        cuts, selection = self._facts["cuts"], self.recipe.selection
        group_by = None if selection.keep.threshold is not None else selection.group_by
        if group_by is None:
            return np.full(len(data), cuts.get("", np.inf))
        groups = group_values(data, group_by, source)
        return np.array([cuts.get(str(group), np.inf) for group in groups.tolist()])

    def _built(self, examples: SourceExamples) -> tuple[Task, Amortized, int]:
        """The recipe's model, for such examples, what was learned with it, and flops of a step."""
        facts, arrays = self._facts, self._arrays
        data = Candidates.unlabeled(examples, facts["outputs"], self._known)
        objective = models.load_objective(find_objective(self.recipe.objective).path)
        job = Job(self.recipe, self._device, data, objective)
        task, _, _ = job.start(self.recipe.training.seed)
        states = [theta.to(self._device) for theta in arrays["states"]]
        if any(len(theta) != task.model.size for theta in states):
            raise UserError(
                f"{self._made_by[0]}: was learned with a model of {len(states[0]):,} parameters, "
                f"and its recipe's has {task.model.size:,} now; select again."
            )
        views = Views(states, facts["layer"], arrays["directions"], facts["labels"])
        predictor = Predictor.restored(arrays["predictor"])
        return task, Amortized(views, predictor, Quality(**facts["quality"])), job.step_flops()


def _again(selection: str, device: str, run_code: bool, digest: str) -> Scorer:
    """The scorer that was pickled, if what it learned is still there."""
    scorer = Scorer(selection, device=device, run_code=run_code)
    if scorer._arrays["facts"] != digest:
        raise OutputError(f"{selection}: is another selection than before; make its Scorer anew.")
    return scorer


def _nothing(count: int) -> dict[str, Array]:
    """What rows without a score have, by the names of `ADDED`."""
    columns: dict[str, Array] = {name: np.full(count, np.nan) for name in ADDED if name != "kept"}
    return columns | {"kept": np.zeros(count, dtype=bool)}


def _looks(examples: SourceExamples) -> str:
    """What the features of a row are."""
    if not isinstance(examples, TensorExamples):
        return "texts"
    features = examples.features
    kind = PICTURES if features.dtype == torch.uint8 else "numbers"
    return f"{kind} of shape {tuple(features.shape[1:])}"


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The facts and the arrays that `write_predictor` wrote.

    Raises:
        OutputError: they are not there, or damaged.
    """
    if not (folder / FACTS).is_file():
        raise OutputError(
            f"{folder.parent}: has nothing to score other rows with; select with `score: {{sample: "
            "N}` in the recipe, which learns to."
        )
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise OutputError(
                f"{folder / FACTS}: is of format {facts['format']} and this curate knows {FORMAT}; "
                "use the version that wrote it."
            )
        arrays = read_sealed(folder / ARRAYS)
    except (OSError, ValueError, KeyError, TypeError, DamagedError) as error:
        raise OutputError(f"{folder}: is damaged ({error}); select again.") from error
    missing = {*FACTS_HAVE} - {*facts} | {*ARRAYS_HAVE} - {*arrays}
    if missing or arrays["facts"] != digest_of(facts):
        what = f"{min(missing)} is missing" if missing else f"{FACTS} is not as it was written"
        raise OutputError(f"{folder}: is damaged ({what}); select again.")
    return facts, arrays
