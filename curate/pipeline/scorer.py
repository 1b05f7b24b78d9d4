"""Score any rows with what a selection learned: a function of batches, for whoever has them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from datasets import Dataset

from curate import models
from curate.datasets import (
    Classes,
    Scaling,
    SourceExamples,
    TensorExamples,
    plain_table,
    refuse_outside,
)
from curate.errors import DataError, OutputError, UserError
from curate.pipeline.amortize import Amortized, Views
from curate.pipeline.build import choose_device
from curate.pipeline.candidates import Candidates, group_values, model_files
from curate.pipeline.job import Job
from curate.pipeline.reading import Known, Reader, find_reader
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
    *(
        "format",
        "arrays",
        "recipe",
        "features",
        "classes",
        "outputs",
        "layer",
        "labels",
        "cuts",
        "quality",
    ),
    "models",
)
ARRAYS_HAVE = ("states", "directions", "predictor", "scaling")
ADDED = {"score": pa.float64(), "low": pa.float64(), "high": pa.float64(), "kept": pa.bool_()}
"""What every row gets: its predicted score, the ends of its 90 % interval, whether it is kept."""


def write_predictor(folder: Path, job: Job, amortized: Amortized) -> None:
    """Write what was learned to a folder: facts as JSON, arrays as safetensors.

    job: of all candidates.
    """
    views, data = amortized.views, job.data
    scaling = data.examples.scaling if isinstance(data.examples, TensorExamples) else None
    folder.mkdir()
    arrays = {
        "states": list(views.states),
        "directions": list(views.directions),
        "predictor": amortized.predictor.saved(),
        "scaling": None if scaling is None else [scaling.shift, scaling.factor],
    }
    write_sealed(folder / ARRAYS, arrays)
    facts = {
        "format": FORMAT,
        "arrays": _digest(folder / ARRAYS),
        "recipe": resolved(job.recipe),
        "features": data.known.features,
        "classes": None if data.known.classes is None else asdict(data.known.classes),
        "outputs": data.outputs,
        "layer": views.layer,
        "labels": views.classes,
        "cuts": dict(amortized.cuts),
        "quality": asdict(amortized.quality),
        "models": model_files(job.recipe),
    }
    write_whole_text(folder / FACTS, json.dumps(facts, indent=2) + "\n")


class Scorer:
    """Gives every row of a batch its predicted score, by what a selection learned (`score.sample`).

    Called with a batch of rows, it gives them back with `score`, `low`, `high` (90 % of scores are
    between) and `kept` (whether the selection would keep the row). A batch may be an Arrow table, a
    Polars frame, lazy or not, or a mapping of columns:

        dataset.map(Scorer("kept"), batched=True)
        Scorer("kept")(pl.scan_parquet("more/*.parquet"))
        ray_dataset.map_batches(Scorer, fn_constructor_args=("kept",), batch_format="pyarrow")

    Scores do not depend on what else is in a batch, but for rounding. Rows shorter than
    `data.min_length` have no score and are not kept.

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
        self._made_by = str(selection), device, run_code
        folder = Path(selection) / FOLDER
        self._facts, self._arrays = _read(folder)
        self.recipe = check_recipe(self._facts["recipe"])
        if not run_code and (named := self.recipe.code()):
            raise UserError(
                f"{folder / FACTS}: names code, which scoring runs: {', '.join(named)}; look at "
                "it, and allow it (--run-code, run_code=True) if it is yours or you trust it."
            )
        before = self._facts["models"]
        for name, files in model_files(self.recipe).items():
            if before.get(name) != files:
                raise UserError(f"{folder}: was learned with another {name}; select again.")
        self._device = choose_device(device)
        self._model: tuple[Task, Amortized, int] | None = None
        self._reader: Reader | None = None
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
        return digest_of(self._facts)

    def __reduce__(self) -> tuple[Any, ...]:
        return _scorer, self._made_by

    def __call__(self, rows: Any) -> Any:
        """The rows, as they came, with `score`, `low`, `high` and `kept`.

        Raises:
            DataError: a column is missing, is there already, or holds what cannot be scored.
        """
        if isinstance(rows, pl.LazyFrame):
            _refuse_taken(rows.collect_schema().names())
            schema = {**rows.collect_schema(), **pl.DataFrame(_nothing(0)).schema}
            return rows.map_batches(self, schema=schema, streamable=True)
        if isinstance(rows, pl.DataFrame):
            _refuse_taken(rows.columns)
            return rows.with_columns(**self._given(rows.to_arrow()))
        if isinstance(rows, pa.Table):
            _refuse_taken(rows.column_names)
            for name, values in self._given(rows).items():
                rows = rows.append_column(name, pa.array(values, ADDED[name]))
            return rows
        _refuse_taken([*rows])
        table = Dataset.from_dict({name: list(column) for name, column in rows.items()})
        return {**rows, **self._given(table.data.table)}

    def _given(self, rows: pa.Table) -> dict[str, Array]:
        """The scores of rows that somebody gives, which name no files."""
        refuse_outside(_dataset(rows), "the rows")
        return self.scores(rows, "the rows")

    def scores(self, rows: pa.Table, source: str) -> dict[str, Array]:
        """Of every row, by the names of `ADDED`. source: where rows come from, for messages."""
        with self._one_at_a_time:
            return self._scores(rows, source)

    def _scores(self, rows: pa.Table, source: str) -> dict[str, Array]:
        data, found = _dataset(rows), _nothing(len(rows))
        if not len(data):
            return found
        self._reader = self._reader or find_reader(self.recipe, data, self._known)
        examples = self._reader.examples(data, source)
        if not len(examples):
            return found
        if self._arrays["scaling"] is not None:
            assert isinstance(examples, TensorExamples)
            examples = examples.standardized_by(Scaling(*self._arrays["scaling"]))
        self._model = self._model or self._built(examples)
        task, amortized, flops = self._model
        with suitable_threads(flops):
            predicted = np.concatenate([*amortized.scores(task, examples)])
        width, places = amortized.quality.width, examples.rows.numpy()
        found["score"][places] = predicted
        found["low"][places], found["high"][places] = predicted - width, predicted + width
        found["kept"][places] = predicted >= self._cuts(data, source)[places]
        return found

    @property
    def _known(self) -> Known:
        classes = self._facts["classes"]
        if classes is not None:
            names = {k: v if v is None else tuple(v) for k, v in classes.items() if k != "count"}
            classes = Classes(classes["count"], **names)
        return Known(self._facts["features"], classes)

    def _cuts(self, data: Dataset, source: str) -> Array:
        """The lowest score that is kept, row by row, shape (n,); infinite where none is."""
        cuts, group_by = self._facts["cuts"], self.recipe.selection.group_by
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


def _scorer(selection: str, device: str, run_code: bool) -> Scorer:
    return Scorer(selection, device=device, run_code=run_code)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:16]


def _dataset(rows: pa.Table) -> Dataset:
    return Dataset(plain_table(rows), fingerprint="")  # which it would pickle the rows to find


def _nothing(count: int) -> dict[str, Array]:
    """What rows without a score have, by the names of `ADDED`."""
    columns: dict[str, Array] = {name: np.full(count, np.nan) for name in ADDED if name != "kept"}
    return columns | {"kept": np.zeros(count, dtype=bool)}


def _refuse_taken(names: Sequence[str]) -> None:
    if taken := [name for name in ADDED if name in names]:
        raise DataError(f"the rows: have a column {taken[0]} already; rename or drop it first.")


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
        if facts["arrays"] != _digest(folder / ARRAYS):
            raise DamagedError(f"{ARRAYS} is not the one that {FACTS} is of")
        arrays = read_sealed(folder / ARRAYS)
    except (OSError, ValueError, KeyError, TypeError, DamagedError) as error:
        raise OutputError(f"{folder}: is damaged ({error}); select again.") from error
    missing = {*FACTS_HAVE} - {*facts} | {*ARRAYS_HAVE} - {*arrays}
    if missing:
        raise OutputError(f"{folder}: is damaged ({min(missing)} is missing); select again.")
    return facts, arrays
