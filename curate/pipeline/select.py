"""`curate select`: from a checked recipe to a directory and a summary of it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from curate.errors import NothingKeptError
from curate.influence import expected_error
from curate.output.composition import composition
from curate.output.directory import Selection, provenance, refuse_other_data, write_selection
from curate.output.page import leave_report
from curate.pipeline.build import choose_device
from curate.pipeline.evaluate import evaluate
from curate.pipeline.forecast import announce
from curate.pipeline.job import Job, prepare
from curate.pipeline.retraining import Retraining
from curate.pipeline.score import Chosen, choose, chosen_table, cut
from curate.pipeline.worth import Appraiser, Worth, trainings
from curate.recipe import Recipe, fingerprint
from curate.runtime.progress import Phases
from curate.runtime.ranks import ALONE, Ranks, everywhere
from curate.runtime.resume import Unfinished
from curate.runtime.threads import suitable_threads
from curate.runtime.trackers import Tracker, careful
from curate.runtime.trackers.base import log_metrics
from curate.selection import Array
from curate.selection.budget import Budget
from curate.selection.ledger import Outcome
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
        resume: continue that run instead, if there is one; the result is the same, bit for bit.
            If it was finished, only its data is compared.
        phases: where phase times go; shows bars if made with `bars=True`.
        say: gets a line beforehand if the run will be a long one.
        ranks: the processes that share the run, all of which call this with the same recipe;
            rank 0 writes.
        trackers: log every window and the summary; one that fails is left out.

    Returns:
        The summary that `--json` prints: rows in and kept, seconds per phase,
        noise AUROC where noise was planted, and the evaluation where the recipe asks for one.

    Raises:
        UserError: nothing was computed or written; what to change is in the message.
        RunError: the run failed on the way; nothing was written. Its progress is kept for
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
        resumed = unfinished.begin(job.made_of(threads))
        if say is not None and resumed:
            say(f"resuming from {unfinished.left()}")
        elif say is not None:
            announce(job, say)
        chosen, summary = _score_and_evaluate(job, phases, unfinished, trackers)
    summary["seconds"] = {name: round(value, 3) for name, value in phases.seconds.items()}
    origin = {"threads": threads, "run": unfinished.run, "resumed": resumed}
    parts = {"composition": composition(job.data.table, chosen.choice.kept, recipe)}
    selection = Selection(
        job.data.table,
        chosen_table(job, chosen),
        provenance(recipe, job.data.sources) | origin | summary | parts,
        recipe,
        chosen.scores.window_rows(),
    )
    with phases.phase("write"):
        if ranks.rank == 0:
            with unfinished.stage() as stage:
                write_selection(stage, selection)
                leave_report(stage, selection.table, selection.scores)
        everywhere(ranks, True)  # nobody is done before it is written
    summary |= {
        "out": str(out),
        "seconds": {name: round(value, 3) for name, value in phases.seconds.items()},
    }
    _log_summary(trackers, summary)
    return summary


def _score_and_evaluate(
    job: Job, phases: Phases, unfinished: Unfinished, trackers: Sequence[Tracker]
) -> tuple[Chosen, dict[str, Any]]:
    recipe, policy, tokens = job.recipe, job.recipe.selection.policy, job.data.tokens
    on_outcome = _window_logger(trackers) if trackers else None
    chosen = choose(job, policy, phases, unfinished, on_outcome)
    worth = None
    if recipe.selection.judge and chosen.by_half is not None:
        worth = _weigh(job, chosen, chosen.by_half, phases, unfinished)
        if worth.share is not None:
            choice = cut(job, chosen.scores.score, Budget(fraction=worth.share))
            chosen = replace(chosen, choice=choice)
    kept = chosen.choice.kept
    summary: dict[str, Any] = {
        "policy": policy,
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
            "kept": int((noisy & kept).sum()),
            "auroc": auroc(-chosen.scores.score, noisy),
        }
    if recipe.evaluation is not None:
        summary["evaluation"] = [row.summary() for row in evaluate(job, chosen, phases, unfinished)]
    return chosen, summary


def _weigh(
    job: Job, chosen: Chosen, by_half: Array, phases: Phases, unfinished: Unfinished
) -> Worth:
    """What choosing is worth, and how much to keep where the recipe leaves it open."""

    def keep(values: Array, budget: Budget | None) -> Array:
        try:
            return cut(job, values, budget).kept
        except NothingKeptError:  # by half of the target; trained on, nothing is worth nothing
            return np.zeros(len(values), dtype=bool)

    auto, rows = bool(job.recipe.selection.keep.auto), job.data.target_rows
    total = round(trainings(auto, rows) * job.total_steps())
    with phases.phase("judge", total) as tick:
        retraining = Retraining(job, tick, unfinished.journal())
        plain = chosen.plain or retraining.plain(unfinished.savepoints("everything"))
        return Appraiser(retraining, by_half, keep, plain.measured).weigh(plain.unlike())


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
