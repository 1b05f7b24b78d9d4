"""The commands, from a checked recipe to what they leave and a summary of it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from curate.errors import UserError
from curate.influence import expected_error
from curate.output.composition import composition
from curate.output.directory import Selection, provenance, refuse_other_data, write_selection
from curate.output.page import leave_report
from curate.pipeline.build import choose_device
from curate.pipeline.evaluate import evaluate
from curate.pipeline.forecast import announce
from curate.pipeline.job import Job, prepare
from curate.pipeline.retraining import Retraining
from curate.pipeline.score import Chosen, choose, cut, nothing_kept
from curate.pipeline.worth import Judge, Worth, trainings
from curate.recipe import Recipe, fingerprint
from curate.runtime.progress import Phases
from curate.runtime.ranks import ALONE, Ranks, everywhere
from curate.runtime.resume import Unfinished
from curate.runtime.threads import suitable_threads
from curate.runtime.trackers import Tracker, careful
from curate.runtime.trackers.base import tell
from curate.selection.budget import Budget
from curate.selection.ledger import Outcome, score_table
from curate.selection.ranking import auroc


def run_select(
    recipe: Recipe,
    out: Path,
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
        resume: go on with that run instead, if there is one; the result is the same, bit for bit.
            If it had been finished, only its data is compared.
        phases: where phase times go; shows bars if made with `bars=True`.
        say: gets a line beforehand if the run will be a long one.
        ranks: the processes that share the run, all of which call this with the same recipe;
            rank 0 writes.
        trackers: are told of every window, and of the summary; one that fails is left out.

    Returns:
        The summary that `--json` prints: rows in and kept, seconds per phase,
        noise AUROC where noise was planted, and the evaluation where the recipe asks for one.

    Raises:
        UserError: nothing was computed or written; what to change is in the message.
        RunError: the run failed on the way; nothing was written. What it had come to is kept for
            `resume`, unless it would fail again; likewise if it is interrupted.
    """
    with Unfinished(
        out, fingerprint(recipe), resume=resume, overwrite=overwrite, ranks=ranks
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
    out, ranks = unfinished.out, unfinished.ranks
    with phases.phase("read"):
        job = prepare(recipe, choose_device(device, ranks), unfinished.folder, ranks)
    if unfinished.finished is not None:
        refuse_other_data(out, job.data.sources)
        return unfinished.finished | {"out": str(out)}
    with suitable_threads(job.step_flops()) as threads:
        going_on = unfinished.begin(job.made_of(threads))
        if say is not None and going_on:
            say(f"going on with {unfinished.left()}")
        elif say is not None:
            announce(job, say)
        chosen, summary = _score_and_evaluate(job, phases, unfinished, trackers)
    table = score_table(
        chosen.scores,
        chosen.choice,
        job.data.examples.rows.numpy(),
        [*job.data.validation],
        job.data.tokens,
    )
    made_with = provenance(recipe, job.data.sources)
    made_with |= {"threads": threads, "run": unfinished.run, "resumed": going_on}
    summary["seconds"] = {name: round(value, 3) for name, value in phases.seconds.items()}
    parts = composition(job.data.table, chosen.choice.kept, recipe)
    selection = Selection(
        job.data.table,
        table,
        provenance=made_with | summary | {"composition": parts},
        recipe=recipe,
        windows=chosen.scores.window_rows(),
    )
    with phases.phase("write"):
        if ranks.rank == 0:
            with unfinished.stage() as stage:
                write_selection(stage, selection)
                leave_report(stage, job.data.table, table)
        everywhere(ranks, True)  # nobody is done before it is written
    summary["out"] = str(out)
    summary["seconds"] = {name: round(value, 3) for name, value in phases.seconds.items()}
    tell_summary(trackers, summary)
    return summary


def _score_and_evaluate(
    job: Job, phases: Phases, unfinished: Unfinished, trackers: Sequence[Tracker]
) -> tuple[Chosen, dict[str, Any]]:
    recipe, policy = job.recipe, job.recipe.selection.policy
    told = TrackedWindows(trackers) if trackers else None
    chosen = choose(job, policy, phases, unfinished, told)
    worth = None
    if recipe.selection.judge and chosen.by_half is not None:
        worth = _weigh(job, chosen, phases, unfinished)
        if worth.share is not None:
            found = cut(job, chosen.scores.score, Budget(fraction=worth.share))
            chosen = replace(chosen, choice=found)
    if (why_nothing := nothing_kept(job, chosen)) is not None:
        raise UserError(f"{why_nothing}.")
    summary: dict[str, Any] = {
        "policy": policy,
        "candidates": len(job.data.examples),
        "kept": int(chosen.choice.kept.sum()),
        "steps": job.total_steps(),
        "device": str(job.device),
        "processes": job.ranks.size,
    }
    if (tokens := job.data.tokens) is not None:
        summary["tokens"] = {
            "candidates": int(tokens.sum()),
            "kept": int(tokens[chosen.choice.kept].sum()),
        }
    counted = {"left_out": job.data.left_out, "truncated": job.data.truncated()}
    summary |= {name: found for name, found in counted.items() if found}
    if worth is not None:
        summary["worth"] = worth.row()
        summary["cost"] = (chosen.passes + worth.steps) / job.total_steps()
    if chosen.repeats is not None:
        summary["repeats"] = chosen.repeats.row()
    if chosen.scores.windows:
        summary["error"] = expected_error(chosen.scores.windows)
    if job.data.noisy is not None:
        noisy = job.data.noisy.numpy()
        summary["noise"] = {
            "planted": int(noisy.sum()),
            "kept": int((noisy & chosen.choice.kept).sum()),
            "auroc": auroc(-chosen.scores.score, noisy),
        }
    if recipe.evaluation is not None:
        summary["evaluation"] = [row.summary() for row in evaluate(job, chosen, phases, unfinished)]
    return chosen, summary


def _weigh(job: Job, chosen: Chosen, phases: Phases, unfinished: Unfinished) -> Worth:
    """What choosing is worth, and how much to keep where that is to be found."""
    assert chosen.by_half is not None
    auto, rows = bool(job.recipe.selection.keep.auto), job.data.target_rows
    total = round(trainings(auto, rows) * job.total_steps())
    with phases.phase("judge", total) as tick:
        retraining = Retraining(job, tick, unfinished.journal())
        plain = chosen.plain or retraining.plain(unfinished.savepoints("everything"))
        judge = Judge(
            retraining,
            chosen.by_half,
            lambda values, budget: cut(job, values, budget).kept,
            plain.measured,
        )
        return judge.weigh(plain.unlike())


class TrackedWindows:
    """Tells trackers what became of every window, at its first step.

    window/target_loss, window/predicted and window/realised are those of `Outcome`, in loss
    units; window/kept is a share of the candidates; window/influence the mean size of their
    influences, window/error what to expect those to be off by; window/seconds since the last.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers
        self._last = time.monotonic()

    def __call__(self, outcome: Outcome, error: float | None) -> None:
        now = time.monotonic()
        metrics = outcome.metrics() | {"error": error, "seconds": now - self._last}
        self._last = now
        tell(self._trackers, "window", metrics, outcome.first_step)


def tell_summary(trackers: Sequence[Tracker], summary: dict[str, Any]) -> None:
    """Log what a selection came to, at the run's end: run/NAME, and NAME/METRIC of retrainings."""
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
    tell(trackers, "run", metrics, summary["steps"])
    for row in summary.get("evaluation", []):
        means = {name: own["mean"] for name, own in row.items() if isinstance(own, dict)}
        tell(trackers, f"test/{row['trained_on']}", means, summary["steps"])
