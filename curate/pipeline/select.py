"""`curate select`: from a checked recipe to a directory and a summary of it."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from curate.datasets import read_classes
from curate.errors import NonFiniteError, NothingKeptError
from curate.influence import expected_error
from curate.output.composition import Judged, composition
from curate.output.directory import (
    Selection,
    provenance,
    refuse_other_data,
    write_selection,
    write_table,
)
from curate.output.page import REPORTED, leave_report
from curate.output.saved_run import LABELS
from curate.pipeline.amortize import Amortized, extended
from curate.pipeline.build import choose_device
from curate.pipeline.evaluate import evaluate
from curate.pipeline.forecast import announce
from curate.pipeline.job import Job, prepare
from curate.pipeline.label_guesses import Guesses
from curate.pipeline.retraining import Retraining
from curate.pipeline.score import Chosen, choose, chosen_table, cut, require_kept
from curate.pipeline.scorer import FOLDER, write_predictor
from curate.pipeline.worth import Appraiser, Worth, trainings
from curate.recipe import Recipe, fingerprint
from curate.runtime.files import write_whole, write_whole_text
from curate.runtime.parts import FAILED, MISSING, Parts
from curate.runtime.progress import Phases
from curate.runtime.ranks import ALONE, Ranks, everywhere
from curate.runtime.resume import MARK, Unfinished
from curate.runtime.threads import suitable_threads
from curate.runtime.trackers import Tracker, careful
from curate.runtime.trackers.base import log_metrics
from curate.selection import Array
from curate.selection.budget import Budget
from curate.selection.ledger import Outcome
from curate.selection.ranking import auroc

ORIGIN = (
    *("versions", "platform", "git_commit", "recipe_fingerprint", "sources", "seeds"),
    *("threads", "run", "resumed", "composition"),
)
"""What provenance.json has beside the summary."""
EVERY_ROW, WORTH, EVALUATION = "choice", "worth", "evaluation"
TRAINED = (WORTH, EVALUATION, LABELS)
"""Parts of a result, by what they are called where they fail; those that need what was chosen."""


def run_select(
    recipe: Recipe,
    out: Path | str,
    *,
    device: str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    phases: Phases | None = None,
    say: Callable[[str], None] | None = None,
    ranks: Ranks = ALONE,
    trackers: Sequence[Tracker] = (),
) -> dict[str, Any]:
    """Score the candidates of a recipe, keep what its budget allows, write it to `out`.

    Args:
        device: auto, cpu or cuda.
        overwrite: replace `out` if curate wrote it, and drop a run to it that was not finished.
        resume: continue that run instead, if there is one; the result is the same, bit for bit.
            If it was finished, only its data is compared.
        phases: where phase times go; shows bars if made with `bars=True`.
        say: gets a line beforehand if the run will be a long one.
        ranks: the processes that share the run, all of which call this with the same recipe;
            rank 0 writes.
        trackers: log every window and the summary; one that fails is left out.

    Returns:
        The summary that `--json` prints: rows in and kept, seconds per phase,
        noise AUROC where noise was planted, and the evaluation where the recipe asks for one;
        under `missing` and `failed` parts of the result that could not be made, and why.

    Raises:
        NothingKeptError: the budget keeps no row; the scores were written.
        UserError: nothing was computed or written; what to change is in the message.
        RunError: the run failed before anything was chosen. Its progress is kept for `resume`,
            unless it would fail again; likewise if it is interrupted.
    """
    with Unfinished(
        Path(out), fingerprint(recipe), resume=resume, overwrite=overwrite, ranks=ranks
    ) as unfinished:
        return _select(recipe, device, unfinished, phases or Phases(), say, careful(trackers))


def _select(
    recipe: Recipe,
    device: str,
    unfinished: Unfinished,
    phases: Phases,
    say: Callable[[str], None] | None,
    trackers: Sequence[Tracker],
) -> dict[str, Any]:
    out, ranks, written = unfinished.out, unfinished.ranks, unfinished.written
    with phases.phase("read"):
        job = prepare(recipe, choose_device(device, ranks), unfinished.folder, ranks)
    if written is not None:
        refuse_other_data(out, job.data.sources)
    if unfinished.finished is not None:
        if EVERY_ROW in unfinished.finished.get(FAILED, {}):
            raise NothingKeptError(unfinished.finished[FAILED][EVERY_ROW])
        return unfinished.finished | {"out": str(out)}
    with suitable_threads(job.step_flops()) as threads:
        resumed = unfinished.begin(job.made_of(threads))
        if say is not None and resumed:
            say(f"resuming from {unfinished.left()}")
        elif say is not None and written is None:
            announce(job, say, phases)
        origin = {"threads": threads, "run": unfinished.run, "resumed": resumed}
        before = (written or {}).get(MISSING)
        result = Result(job, unfinished, phases, origin, Parts(ranks, before))
        summary = result.make(trackers)
    _log_summary(trackers, summary)
    return summary


@dataclass
class Result:
    """The directory of a run, in the order in which it is made: what was chosen first of all.

    Everything after that is a part of its own; one that fails leaves the others, see `Parts`.
    origin: what is noted of the run beside its summary. written: the directory's provenance.
    """

    job: Job
    unfinished: Unfinished
    phases: Phases
    origin: dict[str, Any]
    parts: Parts
    written: dict[str, Any] = field(default_factory=dict)
    amortized: Amortized | None = None

    def make(self, trackers: Sequence[Tracker]) -> dict[str, Any]:
        """Make it, or what it lacks; returns the summary.

        Raises:
            NothingKeptError: the budget keeps no row; the scores are written.
        """
        out, written = self.unfinished.out, self.unfinished.written
        self.written = written or {}
        lacks = [*self.written.get(MISSING, {})]
        self.parts.failed |= self.written.get(FAILED, {})
        if written is None or any(part in lacks for part in TRAINED):
            chosen, worth = self._choose(trackers)
            kept = self._extended(chosen, worth)
            if written is None:
                self._write(kept)
            with _interrupted(f"{out} has what was kept and every score"):
                self._train(chosen, kept, worth)
        with _interrupted(f"{out} lacks its report, and has all else"):
            self._report()
        self.unfinished.lacks = any(part in self.parts.missing for part in (*TRAINED, MARK))
        told = {key: value for key, value in self.written.items() if key not in ORIGIN}
        return told | self.parts.outcome() | {"out": str(out), "seconds": self._seconds()}

    def _choose(self, trackers: Sequence[Tracker]) -> tuple[Chosen, Worth | None]:
        """What is kept, with what it is worth where that says how much."""
        job, on_outcome = self.job, _window_logger(trackers) if trackers else None
        policy = job.recipe.selection.policy
        chosen, worth = choose(job, policy, self.phases, self.unfinished, on_outcome), None
        if job.recipe.selection.keep.auto and self._judges(chosen):
            try:
                worth = _weigh(job, chosen, self.phases, self.unfinished)
            except NonFiniteError as error:
                why = f"{error} So how much to keep is not known, and every row is kept"
                self.parts.note(WORTH, why, error, again=True)
            if worth is not None and worth.share is not None:
                choice = cut(job, chosen.scores.score, Budget(fraction=worth.share))
                chosen = replace(chosen, choice=choice)
        return chosen, worth

    def _extended(self, chosen: Chosen, worth: Worth | None) -> Chosen:
        """What is kept of all candidates, where only a sample was scored."""
        if self.job.recipe.score is None:
            return chosen
        share = None if worth is None else worth.share
        if share is None and self.job.recipe.selection.keep.auto:
            share = 1.0
        kept, self.amortized = extended(self.job, chosen, self.phases, share)
        return kept

    def _judges(self, chosen: Chosen) -> bool:
        return self.job.recipe.selection.judge and chosen.by_half is not None

    def _write(self, chosen: Chosen) -> None:
        """Write what is kept and every score, before anything else is tried."""
        job, recipe = self.job.on_whole(), self.job.recipe
        scores, tokens = chosen.scores, job.data.tokens
        judged = Judged(chosen.choice.kept, scores.influence, scores.seen, tokens)
        with self.phases.phase("write"):
            self.written = (
                provenance(recipe, job.data.sources)
                | self.origin
                | _summary(job, chosen)
                | {"steps": self.job.total_steps()}
                | ({} if self.amortized is None else {"prediction": self.amortized.quality.row()})
                | {"composition": composition(job.data.table, judged, recipe)}
            )
        nothing: NothingKeptError | None = None
        try:
            require_kept(job, chosen.scores.score, chosen.choice)
        except NothingKeptError as error:
            nothing = error
            self.parts.note(
                EVERY_ROW, f"{error} Every score is in {self.unfinished.out}", again=True
            )
        to_come = [*TRAINED, *REPORTED] if nothing is None else []
        with self.phases.phase("write"):
            selection = Selection(
                job.data.table,
                chosen_table(job, chosen, self._width()),
                self._noted(to_come),
                recipe,
                chosen.scores.window_table(),
                None if self.amortized is None else partial(self._write_predictor, self.amortized),
            )
            if job.ranks.rank == 0:
                with self.unfinished.stage() as stage:
                    write_selection(stage, selection)
            everywhere(job.ranks, True)  # nobody goes on before it is written
        if nothing is not None:
            raise NothingKeptError(f"{self.parts.failed[EVERY_ROW]}.") from nothing

    def _write_predictor(self, amortized: Amortized, stage: Path) -> None:
        write_predictor(stage / FOLDER, self.job.on_whole(), amortized)

    def _width(self) -> float | None:
        """Half of the interval of a predicted score, if scores are predicted."""
        return self.amortized.quality.width if self.amortized and self.job.whole else None

    def _train(self, chosen: Chosen, kept: Chosen, worth: Worth | None) -> None:
        """Retrain: what choosing is worth, and the models that the recipe compares.

        chosen: of what was scored, which is what judges; kept: of all candidates.
        """
        job, parts, phases, unfinished = self.job, self.parts, self.phases, self.unfinished
        if worth is None and WORTH not in parts.failed and self._judges(chosen):
            worth = parts.attempt(WORTH, lambda: _weigh(job, chosen, phases, unfinished))
        if worth is not None:
            cost = (kept.passes + worth.steps) / job.on_whole().total_steps()
            self.written |= {"worth": worth.row(), "cost": cost}
            if (guesses := worth.guesses) is not None and len(guesses.rows):
                parts.attempt(LABELS, lambda: self._write_labels(guesses))
        if job.recipe.compared() is not None:
            rows = parts.attempt(
                EVALUATION, lambda: evaluate(job.on_whole(), kept, phases, unfinished, parts)
            )
            self.written |= {} if rows is None else {"evaluation": [row.summary() for row in rows]}
        self._note([*REPORTED])

    def _write_labels(self, guesses: Guesses) -> None:
        """Write labels that are likelier than those given, and note how many they are."""
        data, path = self.job.data, self.unfinished.out / LABELS
        table = guesses.table(data)
        issues = table["is_label_issue"].to_numpy()
        noted: dict[str, Any] = {
            "asked": len(table),
            "suspected": int(issues.sum()),
            "sure": guesses.sure,
        }
        noted["classes"] = data.known.words
        if data.noisy is not None:
            before = data.table.select(guesses.rows)
            name, classes = f"{self.job.recipe.data.columns.label}_clean", data.known.classes
            assert classes is not None
            right = guesses.labels == read_classes(before, name, "data.train", classes).numpy()
            wrong = data.noisy[torch.from_numpy(guesses.rows)].numpy()
            noted |= {"wrong": int((issues & wrong).sum()), "right": int((issues & right).sum())}
        if self.job.ranks.rank == 0:
            write_whole(path, lambda part: write_table(part, table))
        self.written |= {"labels": noted}

    def _report(self) -> None:
        """Store dropped rows, write the report and the card, and note what could not be made."""
        out, job = self.unfinished.out, self.job
        with self.phases.phase("report"):
            if job.ranks.rank == 0:
                leave_report(out, job.on_whole().data.table, self.parts)
            everywhere(job.ranks, True)  # nobody is done before that is
        self._note([])

    def _noted(self, to_come: Sequence[str]) -> dict[str, Any]:
        """The provenance, with parts that failed and those that are still to come."""
        plain = {key: value for key, value in self.written.items() if key not in (MISSING, FAILED)}
        if to_come:  # afterwards the report says what it says
            plain |= {"seconds": self._seconds()}
        outcome = self.parts.outcome()
        missing = dict.fromkeys(to_come, "not made yet") | outcome.pop(MISSING, {})
        self.written = plain | outcome | ({MISSING: missing} if missing else {})
        return self.written

    def _seconds(self) -> dict[str, float]:
        return {name: round(value, 3) for name, value in self.phases.seconds.items()}

    def _note(self, to_come: Sequence[str]) -> None:
        """Write the provenance; while that fails, what it says on disk is to be made again."""
        self.parts.missing.pop(MARK, None)
        text = json.dumps(self._noted(to_come), indent=2) + "\n"
        if self.job.ranks.rank == 0:
            path = self.unfinished.out / MARK
            self.parts.attempt(MARK, lambda: write_whole_text(path, text))


@contextmanager
def _interrupted(left: str) -> Iterator[None]:
    """Say what is there, if interrupted."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.args = (left,)
        raise


def _summary(job: Job, chosen: Chosen) -> dict[str, Any]:
    """What a run came to, without what its retrainings measure."""
    kept, tokens = chosen.choice.kept, job.data.tokens
    summary: dict[str, Any] = {
        "policy": job.recipe.selection.policy,
        "candidates": len(kept),
        "kept": int(kept.sum()),
        "steps": job.total_steps(),
        "device": str(job.device),
        "processes": job.ranks.size,
    }
    if tokens is not None:
        summary["tokens"] = {"candidates": int(tokens.sum()), "kept": int(tokens[kept].sum())}
    counts = {"left_out": job.data.left_out, "truncated": job.data.truncated()}
    summary |= {name: by_part for name, by_part in counts.items() if by_part}
    if chosen.repeats is not None:
        summary["repeats"] = chosen.repeats.row()
    if chosen.scores.windows:
        summary["error"] = expected_error(chosen.scores.windows)
    if job.data.relabelled is not None:
        summary["relabelled"] = job.data.relabelled
    if job.data.noisy is not None:
        noisy = job.data.noisy.numpy()
        summary["noise"] = {
            "planted": int(noisy.sum()),
            "kept": int((noisy & kept).sum()),
            "auroc": auroc(-chosen.scores.score, noisy),
        }
    return summary


def _weigh(job: Job, chosen: Chosen, phases: Phases, unfinished: Unfinished) -> Worth:
    """What choosing is worth, and how much to keep where the recipe leaves it open."""

    def keep(values: Array, budget: Budget | None) -> Array:
        return cut(job, values, budget).kept  # by half of the target, which may be nothing

    assert chosen.by_half is not None
    auto, rows = bool(job.recipe.selection.keep.auto), job.data.target_rows
    corrected = job.data.formerly is not None
    total = round(trainings(auto, rows, corrected=corrected) * job.total_steps())
    with phases.phase("judge", total) as tick:
        retraining = Retraining(job, tick, unfinished.journal())
        plain = chosen.plain or retraining.plain(unfinished.savepoints("everything"))
        appraiser = Appraiser(retraining, chosen.by_half, keep, plain.measured, plain.before)
        return appraiser.weigh(plain.watched.unlike())


def _window_logger(trackers: Sequence[Tracker]) -> Callable[[Outcome, float | None], None]:
    """Logs the outcome of every window, at its first step.

    window/target_loss, window/predicted and window/realized are those of `Outcome`, in loss
    units; window/kept is a share of the candidates; window/influence the mean size of their
    influences, window/error what to expect those to be off by; window/seconds since the last.
    """
    last = time.monotonic()

    def log(outcome: Outcome, error: float | None) -> None:
        nonlocal last
        now = time.monotonic()
        metrics = outcome.metrics() | {"error": error, "seconds": now - last}
        last = now
        log_metrics(trackers, "window", metrics, outcome.first_step)

    return log


def _log_summary(trackers: Sequence[Tracker], summary: dict[str, Any]) -> None:
    """Log the summary at the run's end: run/NAME, and test/NAME/METRIC of retrainings."""
    noise, error = summary.get("noise", {}), summary.get("error", {})
    metrics = {
        "candidates": summary["candidates"],
        "kept": summary["kept"],
        "influence": error.get("signal"),
        "error": error.get("error"),
        "noise_kept": noise.get("kept"),
        "noise_auroc": noise.get("auroc"),
        "seconds": sum(summary["seconds"].values()),
    }
    log_metrics(trackers, "run", metrics, summary["steps"])
    for row in summary.get("evaluation", []):
        means = {name: value["mean"] for name, value in row.items() if isinstance(value, dict)}
        log_metrics(trackers, f"test/{row['trained_on']}", means, summary["steps"])
