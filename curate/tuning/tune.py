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
from curate.pipeline.job import Job, prepare
from curate.pipeline.retraining import SMALL
from curate.pipeline.score import Chosen
from curate.pipeline.worth import trainings
from curate.recipe import Recipe, resolved, write_recipe
from curate.runtime.files import write_whole, write_whole_text
from curate.runtime.progress import Phases
from curate.runtime.resume import existing_parent
from curate.runtime.threads import suitable_threads
from curate.runtime.trackers import Tracker, careful
from curate.runtime.trackers.base import tell
from curate.selection import Array
from curate.selection.ledger import score_table
from curate.tuning.grid import Pair, Plan
from curate.tuning.study import Board, Entry, Unit
from curate.tuning.table import describe_pilot, describe_run, table_of
from curate.tuning.trials import Bench, set_up, with_pair

POLL = 0.5
"""Seconds between looks at what other processes have finished."""


@dataclass(frozen=True)
class Tuned:
    """What a tuning came to.

    recipe: the one given, with the best pair, ready for `curate select`. pair, value: the best
    and its metric on the judging part of the validation set, mean over seeds. table: a
    line per trial, see `table_of`. study: Optuna's. everything: of training on all rows,
    per learning rate, None where that diverged. test: metrics on the test set, one dict
    per seed, of training on what the best pair `kept` and on `everything`, unless that
    diverged; None without a test set. worth: of what the best pair kept, beside everything at
    the learning rate that suits it best, see `Worth.row`; None if a training diverged.
    """

    recipe: Recipe
    pair: Pair
    value: float
    table: pl.DataFrame
    study: optuna.Study
    plan: Plan
    everything: dict[float, float | None]
    test: dict[str, list[dict[str, float]]] | None
    worth: dict[str, Any] | None

    def summary(self) -> dict[str, Any]:
        """Plain values, for `tune.json`, the closing lines and the picture."""
        return {
            "horizon": self.recipe.selection.horizon,
            "learning_rate": self.pair.learning_rate,
            "metric": self.plan.tune.metric,
            "value": self.value,
            "why": why_best(self),
            "steps": self.plan.steps,
            "horizons": [*self.plan.horizons],
            "everything": {f"{lr:g}": value for lr, value in self.everything.items()},
            "suits_everything": self.suits_everything,
            "test": self.test,
            "worth": self.worth,
            "passes": self.passes,
            "grid_passes": self.plan.grid_passes(),
            "study": self.study.study_name,
        }

    @property
    def passes(self) -> float:
        """Gradients of a batch that pilots and runs took, about."""
        return float(self.table["passes"].sum())

    @property
    def suits_everything(self) -> float | None:
        """The learning rate at which training on everything comes out best, if any does."""
        return _best_rate(self.everything, self.plan.tune.metric)


def tune_job(
    job: Job,
    out: Path,
    storage: str | None,
    phases: Phases,
    say: Callable[[str], None],
    trackers: Sequence[Tracker] = (),
) -> Tuned:
    """Tune a recipe's horizon and learning rate.

    Stage 1: a pilot per learning rate (see `fly`) shows what influences are worth at every
    horizon, and pairs whose influences cannot be trusted end here. Stage 2: the others run, as
    many as the budget pays for, from the most promising to its neighbors (`Plan.batches`). A
    run selects with one part of the validation set, retrains from scratch on what was kept and
    is judged on the other part.

    What is run depends on finished values only: the result is the same however many
    processes share the work, and wherever they were stopped.

    Cost: at most `tune.budget` of runs of the whole grid. Memory: as a selection run.

    Args:
        out: holds the study, unless the database that `storage` names does, and runs' scores.
        say: gets a line for every unit of work done. trackers: are told of it: pilot/NAME or
            trial/NAME, the step being the number of units that this process did before.

    Raises:
        UserError: the recipe cannot be tuned. RunError: no pair can be trusted.
    """
    bench = set_up(job)
    asked = {"recipe": resolved(job.recipe), "data": job.data.sources}
    key = sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
    board = Board(out, storage, bench.plan, key, asked)
    say(bench.plan.describe())
    worker = _Worker(bench, board, phases, say, trackers)
    try:
        worker.work()
        return worker.result()
    except optuna.exceptions.StorageInternalError as error:
        raise RunError(f"the study's database failed: {error}; run it again to go on.") from error


@dataclass
class _Worker:
    """One process at work on a tuning."""

    bench: Bench
    board: Board
    phases: Phases
    say: Callable[[str], None]
    trackers: Sequence[Tracker]
    done: int = 0

    def work(self) -> None:
        """Take unit after unit until there is none left, here or elsewhere."""
        while units := self._open():
            if (unit := self.board.claim(units)) is None:
                time.sleep(POLL)
                continue
            with self.board.at_work(unit):
                begin = time.monotonic()
                if unit.horizon is None:
                    self._pilot(unit, begin)
                else:
                    self._run(Pair(unit.horizon, unit.learning_rate), begin)

    def result(self) -> Tuned:
        """What it came to; measures the best pair on the test set if nobody has."""
        plan, entries = self.bench.plan, self.board.entries()
        values = self._values(entries)
        if not np.isfinite(min(values.values(), default=np.inf)):
            raise RunError(f"no pair is of use: {_reasons(entries)}. Try lower learning rates.")
        pair = min(values, key=lambda pair: (values[pair], pair))
        everything = {lr: entries[Unit(lr)].value for lr in plan.learning_rates}
        with self.board.lock:
            test, worth = self.board.recall("test"), self.board.recall("worth")
            if test is None and self.bench.job.data.test is not None:
                test = self._test(pair)
                self.board.remember("test", test)
            rate = _best_rate(everything, plan.tune.metric)
            if worth is None and rate is not None:
                worth = self._worth(pair, rate)
                self.board.remember("worth", worth)
        return Tuned(
            recipe=with_pair(self.bench.job.recipe, pair, plan.steps),
            pair=pair,
            value=self.bench.sign * values[pair],
            table=table_of(entries, plan, pair),
            study=self.board.study,
            plan=plan,
            everything=everything,
            test=test,
            worth=worth,
        )

    def _open(self) -> list[Unit]:
        """The units of the first stage that is not through; none if all are."""
        plan, entries = self.bench.plan, self.board.entries()
        units = [Unit(lr) for lr in plan.learning_rates]
        if not all(_finished(unit, entries) for unit in units):
            return units
        everything = {unit.learning_rate: self._signed(entries[unit].value) for unit in units}
        trusted = [
            pair
            for pair in plan.pairs
            if (own := entries.get(Unit(pair.learning_rate, pair.horizon))) is None
            or not own.notes.get("dropped")
        ]
        if not trusted:
            raise RunError(
                f"no pair can be trusted: {_reasons(entries)}. Try lower learning rates."
            )
        batches = plan.batches(everything, trusted, self._values(entries))
        units = [Unit(pair.learning_rate, pair.horizon) for pair in batches[-1]]
        return [] if all(_finished(unit, entries) for unit in units) else units

    def _values(self, entries: Mapping[Unit, Entry]) -> dict[Pair, float]:
        """Of the finished runs, lower is better; infinity for one that failed."""
        return {
            Pair(unit.horizon, unit.learning_rate): self._signed(entry.value)
            for unit, entry in entries.items()
            if unit.horizon is not None
            and entry.state == "finished"
            and not entry.notes.get("dropped")
        }

    def _signed(self, value: float | None) -> float:
        """Such that lower is better; infinity for what has no value."""
        return np.inf if value is None else self.bench.sign * value

    def _pilot(self, unit: Unit, begin: float) -> None:
        plan = self.bench.plan
        with self.phases.phase("pilots", plan.steps) as tick:
            everything, views = self.bench.fly(unit.learning_rate, tick)
        reasons = {view.horizon: view.distrust(plan.tune.trust) for view in views}
        if everything is None:
            diverged = "training on everything diverges"
            reasons = {k: reason or diverged for k, reason in reasons.items()}
        with self.board.lock:
            for horizon, reason in reasons.items():
                if reason is not None:
                    pair = Pair(horizon, unit.learning_rate)
                    self.board.drop(pair, {"dropped": True, "reason": reason})
        notes: dict[str, Any] = {
            "views": [asdict(view) for view in views],
            "passes": plan.pilot_passes(),
            "seconds": time.monotonic() - begin,
        }
        self.board.finish(unit, everything, notes)
        trusted = [k for k, reason in reasons.items() if reason is None]
        found = {"learning_rate": unit.learning_rate, "trusted_horizons": len(trusted)}
        self._tell("pilot", found, everything, notes["seconds"])
        self.say(describe_pilot(unit.learning_rate, everything, plan, trusted))

    def _run(self, pair: Pair, begin: float) -> None:
        plan, unit = self.bench.plan, Unit(pair.learning_rate, pair.horizon)
        notes: dict[str, Any] = {"passes": plan.run_passes(pair.horizon)}
        value: float | None = None
        try:
            chosen, values = self.bench.run(pair, self.phases)
            self._save(pair, chosen)
            value, notes["values"] = mean(values), values
        except (NonFiniteError, NothingKeptError) as error:
            notes["reason"] = str(error)
        notes["seconds"] = time.monotonic() - begin
        self.board.finish(unit, value, notes)
        self._tell("trial", pair._asdict(), value, notes["seconds"])
        self.say(describe_run(pair, value, plan))

    def _tell(
        self, kind: str, found: Mapping[str, float], value: float | None, seconds: float
    ) -> None:
        metric = {self.bench.plan.tune.metric: value, "seconds": seconds}
        tell(self.trackers, kind, {**found, **metric}, self.done)
        self.done += 1

    def _save(self, pair: Pair, chosen: Chosen) -> None:
        data = self.bench.job.data
        table = score_table(
            chosen.scores,
            chosen.choice,
            data.examples.rows.numpy(),
            [*data.validation],
            data.tokens,
        )
        path = self._path(pair)
        path.parent.mkdir(exist_ok=True)
        write_whole(path, table.write_parquet)

    def _path(self, pair: Pair) -> Path:
        return self.board.folder / "runs" / f"K{pair.horizon}-lr{pair.learning_rate:g}.parquet"

    def _test(self, pair: Pair) -> dict[str, Any]:
        kept = self._kept(pair)
        everything: Array = np.ones(len(kept), dtype=bool)
        total = 2 * len(self.bench.plan.tune.seeds) * self.bench.plan.steps
        with self.phases.phase("test", total) as tick:
            found = {"kept": self.bench.test(pair, kept, tick)}
            with suppress(NonFiniteError):  # a learning rate that only the kept rows bear
                found["everything"] = self.bench.test(pair, everything, tick)
        return found

    def _worth(self, pair: Pair, learning_rate: float) -> dict[str, Any] | None:
        total = round(trainings(False, SMALL) * self.bench.plan.steps)
        with self.phases.phase("judge", total) as tick, suppress(NonFiniteError):
            return self.bench.worth(pair, self._kept(pair), learning_rate, tick).row()
        return None

    def _kept(self, pair: Pair) -> Array:
        """What the run of a pair kept, shape (N,); run again if its scores are elsewhere."""
        try:
            table = pl.read_parquet(self._path(pair), columns=["kept"])
        except (OSError, pl.exceptions.PolarsError):
            return self.bench.run(pair, self.phases)[0].choice.kept
        kept: Array = table["kept"].to_numpy()
        return kept


def _best_rate(everything: Mapping[float, float | None], metric: str) -> float | None:
    found = {lr: value for lr, value in everything.items() if value is not None}
    best = min if metric == "loss" else max
    return best(found, key=lambda lr: found[lr]) if found else None


def _finished(unit: Unit, entries: Mapping[Unit, Entry]) -> bool:
    return unit in entries and entries[unit].state == "finished"


def _reasons(entries: Mapping[Unit, Entry]) -> str:
    """Why pairs came to nothing, the first three reasons."""
    found = dict.fromkeys(e.notes["reason"] for e in entries.values() if "reason" in e.notes)
    return "; ".join([*found][:3])


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
    Optuna study. A tuning that was killed goes on where it was; any number of processes may
    tune the same recipe to the same `out` at once.

    Args:
        storage: URL of a database for the study, for processes on several machines.
        say: gets a line for every pilot and run.
        trackers: are told of every pilot and run of this process; one that fails is left out.

    Returns:
        The tuned recipe, the study, a table of everything tried.

    Raises:
        UserError: the recipe cannot be tuned, or `out` holds another tuning.
        RunError: no pair can be trusted.
    """
    phases, out = phases or Phases(), Path(out)
    _refuse_foreign_recipe(out)
    with phases.phase("read"):
        job = prepare(recipe, choose_device(device), existing_parent(out))
    with suitable_threads(job.step_flops()):
        tuned = tune_job(job, out, storage, phases, say, careful(trackers))
    summary = tuned.summary()
    text = json.dumps(made_with() | summary, indent=2) + "\n"
    write_whole(out / "tune.parquet", tuned.table.write_parquet)
    write_whole(out / "tune.png", lambda part: plot_tuning(summary, tuned.table, part))
    write_whole_text(out / "tune.json", text)
    write_whole_text(out / "recipe.yaml", write_recipe(tuned.recipe))
    return tuned


def _refuse_foreign_recipe(out: Path) -> None:
    """Raise OutputError if `out` has a recipe.yaml that no tuning wrote."""
    if (out / "recipe.yaml").exists() and not (out / "tune.json").exists():
        raise OutputError(
            f"{out}: has a recipe.yaml that tune did not write and would replace; "
            "give another --out."
        )


def why_best(tuned: Tuned) -> str:
    """One sentence on why this pair."""
    plan, outcomes = tuned.plan, tuned.table["outcome"].to_list()
    best = tuned.table.filter(pl.col("outcome") == "best").to_dicts()[0]
    runs = sum(outcome in ("best", "beaten", "failed") for outcome in outcomes)
    text = (
        f"best: horizon {horizon_name(tuned.pair.horizon, plan.steps)} with learning rate "
        f"{tuned.pair.learning_rate:g}: {plan.tune.metric} {tuned.value:.4g}, the "
        f"{'lowest' if plan.tune.metric == 'loss' else 'highest'} of {runs} runs; its influences "
        f"are expected to be off by {share_in_words(best['error'], best['signal'])}"
    )
    if dropped := outcomes.count("dropped"):
        text += f"; {dropped} of {len(plan.pairs)} pairs were not to be trusted"
    return text
