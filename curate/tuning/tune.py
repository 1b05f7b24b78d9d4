"""`curate tune`: horizon and learning rate, from pilots over runs to one pair."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import optuna
import polars as pl

from curate.errors import NonFiniteError, NothingKeptError, OutputError, RunError
from curate.output.directory import made_with
from curate.output.figures import plot_tuning
from curate.output.verdict import share_in_words
from curate.output.words import horizon_name
from curate.pipeline.build import choose_device
from curate.pipeline.forecast import LONG
from curate.pipeline.job import Job, prepare
from curate.pipeline.retraining import SMALL
from curate.pipeline.score import Chosen, chosen_table
from curate.pipeline.worth import trainings
from curate.recipe import Recipe, resolved, write_recipe
from curate.runtime.files import write_whole, write_whole_text
from curate.runtime.progress import Phases
from curate.runtime.resume import existing_parent
from curate.runtime.threads import suitable_threads
from curate.runtime.trackers import Tracker, careful
from curate.runtime.trackers.base import log_metrics
from curate.runtime.units import duration
from curate.selection import Array
from curate.tuning.grid import Grid, Pair
from curate.tuning.study import Entry, Study, Trial, table_of
from curate.tuning.trials import Trials, set_up, with_pair

POLL = 0.5
"""Seconds between looks at what other processes have finished."""


@dataclass(frozen=True)
class Tuned:
    """What a tuning came to.

    recipe: the one to tune, with the best pair, ready for `curate select`. pair, value: the best
    and its metric on the judging part of the validation set, mean over seeds. table: a
    row per trial, see `table_of`. study: Optuna's. everything: metric of training on all rows,
    per learning rate, None where that diverged. test: metrics on the test set, one dict
    per seed, after training on what the best pair `kept` and on `everything`, unless that
    diverged; None without a test set. worth: what the best pair's choice is worth, beside
    everything at the learning rate that suits it best, see `Worth.row`; None if a training
    diverged.
    """

    recipe: Recipe
    pair: Pair
    value: float
    table: pl.DataFrame
    study: optuna.Study
    grid: Grid
    everything: dict[float, float | None]
    test: dict[str, list[dict[str, float]]] | None
    worth: dict[str, Any] | None

    def summary(self) -> dict[str, Any]:
        """Plain values, for `tune.json`, the closing lines and the picture."""
        return {
            "horizon": self.recipe.selection.horizon,
            "learning_rate": self.pair.learning_rate,
            "metric": self.grid.tune.metric,
            "value": self.value,
            "why": why_best(self),
            "steps": self.grid.steps,
            "horizons": [*self.grid.horizons],
            "everything": {f"{lr:g}": value for lr, value in self.everything.items()},
            "suits_everything": self.suits_everything,
            "test": self.test,
            "worth": self.worth,
            "passes": self.passes,
            "grid_passes": self.grid.grid_passes(),
            "study": self.study.study_name,
        }

    @property
    def passes(self) -> float:
        """Gradients of a batch that pilots and runs took, about."""
        return float(self.table["passes"].sum())

    @property
    def suits_everything(self) -> float | None:
        """The learning rate at which training on everything comes out best, if any does."""
        return _best_rate(self.everything, self.grid.tune.metric)


def tune(
    recipe: Recipe,
    out: Path | str,
    *,
    storage: str | None = None,
    device: str = "auto",
    phases: Phases | None = None,
    say: Callable[[str], None] = lambda _: None,
    trackers: Sequence[Tracker] = (),
) -> Tuned:
    """Tune a recipe's horizon together with its learning rate, see `tune_job`.

    Writes `recipe.yaml`, `tune.parquet`, `tune.png` and `tune.json` to `out`, beside the
    Optuna study. A tuning that was killed continues where it was; any number of processes may
    tune the same recipe to the same `out` at once.

    Args:
        storage: URL of a database for the study, for processes on several machines.
        say: gets a line for every pilot and run.
        trackers: log every pilot and run of this process; one that fails is left out.

    Returns:
        The tuned recipe, the study, a table of everything tried.

    Raises:
        UserError: the recipe cannot be tuned, or `out` holds another tuning.
        RunError: no pair can be trusted.
    """
    phases, out = phases or Phases(), Path(out)
    if (out / "recipe.yaml").exists() and not (out / "tune.json").exists():
        raise OutputError(
            f"{out}: has a recipe.yaml that tune did not write and would replace; "
            "give another --out."
        )
    with phases.phase("read"):
        job = prepare(recipe, choose_device(device), existing_parent(out))
    with suitable_threads(job.step_flops()):
        tuned = tune_job(job, out, storage, phases, say, careful(trackers))
    summary = tuned.summary()
    write_whole(out / "tune.parquet", tuned.table.write_parquet)
    write_whole(out / "tune.png", lambda part: plot_tuning(summary, tuned.table, part))
    write_whole_text(out / "tune.json", json.dumps(made_with() | summary, indent=2) + "\n")
    write_whole_text(out / "recipe.yaml", write_recipe(tuned.recipe))
    return tuned


def tune_job(
    job: Job,
    out: Path,
    storage: str | None,
    phases: Phases,
    say: Callable[[str], None],
    trackers: Sequence[Tracker] = (),
) -> Tuned:
    """Tune the horizon and learning rate of a job's recipe.

    Stage 1: a pilot per learning rate (see `run_pilot`) shows what influences are worth at every
    horizon, and pairs whose influences cannot be trusted end here. Stage 2: the others run, as
    many as the budget pays for, from the most promising to its neighbors (`Grid.batches`). A
    run selects with one part of the validation set, retrains from scratch on what was kept and
    is judged on the other part.

    What is run depends on finished values only: the result is the same however many
    processes share the work, and wherever they were stopped.

    Cost: at most `tune.budget` of runs of the whole grid. Memory: as a selection run.

    Args:
        out: holds the study, unless the database that `storage` names does, and runs' scores.
        say: gets a line for every trial. trackers: log it as pilot/NAME or trial/NAME, the step
            being the number of trials that this process did before.

    Raises:
        UserError: the recipe cannot be tuned. RunError: no pair can be trusted.
    """
    trials = set_up(job)
    asked = {"recipe": resolved(job.recipe), "data": job.data.sources}
    key = sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
    study = Study(out, storage, trials.grid, key, asked)
    say(trials.grid.describe())
    if (seconds := trials.seconds()) > LONG:
        say(f"this will take about {duration(seconds)} at most")
    worker = _Worker(trials, study, phases, say, trackers)
    try:
        worker.work()
        return worker.result()
    except optuna.exceptions.StorageInternalError as error:
        raise RunError(
            f"the study's database failed: {error}; run it again to continue."
        ) from error


@dataclass
class _Worker:
    """One process at work on a tuning. done: trials that it finished."""

    trials: Trials
    study: Study
    phases: Phases
    say: Callable[[str], None]
    trackers: Sequence[Tracker]
    done: int = 0

    def work(self) -> None:
        """Take trial after trial until there is none left, here or elsewhere."""
        rates, steps = self.trials.grid.learning_rates, self.trials.grid.steps
        elsewhere = 0
        with self.phases.phase("pilots", len(rates) * steps) as tick:
            while (trials := self._open()) is rates:
                finished = [entry.state for entry in self.study.entries().values()].count(
                    "finished"
                )
                tick(steps * (finished - self.done - elsewhere))
                elsewhere = finished - self.done
                self._take(trials, tick)
        while trials := self._open():
            self._take(trials, tick)

    def _take(self, trials: Sequence[Trial], tick: Callable[[], None]) -> None:
        """One trial, if there is one that nobody is at; `tick` counts a pilot's steps."""
        if (trial := self.study.claim(trials)) is None:
            time.sleep(POLL)
            return
        with self.study.at_work(trial):
            begin = time.monotonic()
            if isinstance(trial, Pair):
                self._run(trial, begin)
            else:
                self._pilot(trial, begin, tick)

    def result(self) -> Tuned:
        """What it came to; measures the best pair on the test set if nobody has."""
        grid, entries = self.trials.grid, self.study.entries()
        values = self._values(entries)
        if not np.isfinite(min(values.values(), default=np.inf)):
            raise RunError(f"no pair is of use: {_reasons(entries)}. Try lower learning rates.")
        pair = min(values, key=lambda pair: (values[pair], pair))
        everything = {lr: entries[lr].value for lr in grid.learning_rates}
        with self.study.lock:
            test, worth = self.study.recall("test"), self.study.recall("worth")
            if test is None and self.trials.job.data.test is not None:
                test = self._test(pair)
                self.study.remember("test", test)
            rate = _best_rate(everything, grid.tune.metric)
            if worth is None and rate is not None:
                worth = self._worth(pair, rate)
                self.study.remember("worth", worth)
        return Tuned(
            recipe=with_pair(self.trials.job.recipe, pair, grid.steps),
            pair=pair,
            value=self.trials.sign * values[pair],
            table=table_of(entries, grid, pair),
            study=self.study.study,
            grid=grid,
            everything=everything,
            test=test,
            worth=worth,
        )

    def _open(self) -> Sequence[Trial]:
        """The trials of the first stage that is not done; none if all are."""
        grid, entries = self.trials.grid, self.study.entries()

        def finished(trial: Trial) -> bool:
            return trial in entries and entries[trial].state == "finished"

        if not all(map(finished, grid.learning_rates)):
            return grid.learning_rates
        trusted = [
            pair
            for pair in grid.pairs
            if pair not in entries or not entries[pair].notes.get("dropped")
        ]
        if not trusted:
            raise RunError(
                f"no pair can be trusted: {_reasons(entries)}. Try lower learning rates."
            )
        everything = {lr: self._signed(entries[lr].value) for lr in grid.learning_rates}
        batch = grid.batches(everything, trusted, self._values(entries))[-1]
        return [] if all(map(finished, batch)) else batch

    def _values(self, entries: Mapping[Trial, Entry]) -> dict[Pair, float]:
        """Values of the finished runs, lower is better; infinity for one that failed."""
        return {
            trial: self._signed(entry.value)
            for trial, entry in entries.items()
            if isinstance(trial, Pair)
            and entry.state == "finished"
            and not entry.notes.get("dropped")
        }

    def _signed(self, value: float | None) -> float:
        """The value if lower is better, or its negative; infinity for None."""
        return np.inf if value is None else self.trials.sign * value

    def _pilot(self, learning_rate: float, begin: float, tick: Callable[[], None]) -> None:
        grid = self.trials.grid
        everything, views = self.trials.run_pilot(learning_rate, tick)
        diverged = "training on everything diverges" if everything is None else None
        reasons = {view.horizon: view.distrust(grid.tune.trust) or diverged for view in views}
        with self.study.lock:
            for horizon, reason in reasons.items():
                if reason is not None:
                    self.study.drop(Pair(horizon, learning_rate), reason)
        notes = {"views": [asdict(view) for view in views], "passes": grid.pilot_passes()}
        trusted = [k for k, reason in reasons.items() if reason is None]
        metrics = {"learning_rate": learning_rate, "trusted_horizons": len(trusted)}
        self._finish(learning_rate, everything, notes, begin, metrics)
        self.say(
            f"pilot lr {learning_rate:g}: {self._shown(everything)} on everything; "
            f"horizons to be trusted: {', '.join(map(str, trusted)) or 'none'}"
        )

    def _run(self, pair: Pair, begin: float) -> None:
        notes: dict[str, Any] = {"passes": self.trials.grid.run_passes(pair.horizon)}
        value: float | None = None
        try:
            chosen, values = self.trials.run(pair, self.phases)
            self._save(pair, chosen)
            value, notes["values"] = mean(values), values
        except NonFiniteError as error:
            notes["reason"] = str(error)
        except NothingKeptError as error:
            notes["reason"] = f"{pair}: {str(error).removesuffix('.')}"
        self._finish(pair, value, notes, begin, pair._asdict())
        self.say(f"run {pair}: {self._shown(value)}")

    def _finish(
        self,
        trial: Trial,
        value: float | None,
        notes: dict[str, Any],
        begin: float,
        metrics: Mapping[str, float],
    ) -> None:
        """Enter a trial in the study and log it."""
        seconds = time.monotonic() - begin
        self.study.finish(trial, value, notes | {"seconds": seconds})
        kind = "trial" if isinstance(trial, Pair) else "pilot"
        values = {self.trials.grid.tune.metric: value, "seconds": seconds}
        log_metrics(self.trackers, kind, {**metrics, **values}, self.done)
        self.done += 1

    def _shown(self, value: float | None) -> str:
        return "no value" if value is None else f"{self.trials.grid.tune.metric} {value:.4g}"

    def _save(self, pair: Pair, chosen: Chosen) -> None:
        path = self._path(pair)
        path.parent.mkdir(exist_ok=True)
        write_whole(path, chosen_table(self.trials.job, chosen).write_parquet)

    def _path(self, pair: Pair) -> Path:
        return self.study.folder / "runs" / f"K{pair.horizon}-lr{pair.learning_rate:g}.parquet"

    def _test(self, pair: Pair) -> dict[str, Any]:
        kept = self._kept(pair)
        everything: Array = np.ones(len(kept), dtype=bool)
        total = 2 * len(self.trials.grid.tune.seeds) * self.trials.grid.steps
        with self.phases.phase("test", total) as tick:
            test = {"kept": self.trials.test(pair, kept, tick)}
            with suppress(NonFiniteError):  # a learning rate that only the kept rows bear
                test["everything"] = self.trials.test(pair, everything, tick)
        return test

    def _worth(self, pair: Pair, learning_rate: float) -> dict[str, Any] | None:
        total = round(trainings(False, SMALL) * self.trials.grid.steps)
        with self.phases.phase("judge", total) as tick, suppress(NonFiniteError):
            return self.trials.worth(pair, self._kept(pair), learning_rate, tick).row()
        return None

    def _kept(self, pair: Pair) -> Array:
        """What the run of a pair kept, shape (N,); run again if its scores are elsewhere."""
        try:
            table = pl.read_parquet(self._path(pair), columns=["kept"])
        except (OSError, pl.exceptions.PolarsError):
            return self.trials.run(pair, self.phases)[0].choice.kept
        kept: Array = table["kept"].to_numpy()
        return kept


def _best_rate(everything: Mapping[float, float | None], metric: str) -> float | None:
    values = {lr: value for lr, value in everything.items() if value is not None}
    best = min if metric == "loss" else max
    return best(values, key=lambda lr: values[lr]) if values else None


def _reasons(entries: Mapping[Trial, Entry]) -> str:
    """Why pairs came to nothing, the first three reasons."""
    reasons = dict.fromkeys(e.notes["reason"] for e in entries.values() if "reason" in e.notes)
    return "; ".join([*reasons][:3])


def why_best(tuned: Tuned) -> str:
    """One sentence on why this pair."""
    grid, outcomes = tuned.grid, tuned.table["outcome"].to_list()
    best = tuned.table.filter(pl.col("outcome") == "best").to_dicts()[0]
    runs = sum(outcome in ("best", "beaten", "failed") for outcome in outcomes)
    text = (
        f"best: horizon {horizon_name(tuned.pair.horizon, grid.steps)} with learning rate "
        f"{tuned.pair.learning_rate:g}: {grid.tune.metric} {tuned.value:.4g}, the "
        f"{'lowest' if grid.tune.metric == 'loss' else 'highest'} of {runs} runs; its influences "
        f"are expected to be off by {share_in_words(best['error'], best['signal'])}"
    )
    if dropped := outcomes.count("dropped"):
        text += f"; {dropped} of {len(grid.pairs)} pairs were not to be trusted"
    return text
