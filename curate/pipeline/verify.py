"""`curate verify`: leave examples out, train again, and see what the scores are worth."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch

from curate.errors import UserError
from curate.influence import (
    Scoring,
    leave_out,
    over_targets,
    score_window,
    size_of,
    target_losses,
)
from curate.influence.cost import leaving_out_passes, passes
from curate.output.directory import made_with, refuse_other_data, saved_influences
from curate.output.figures import plot_verification
from curate.output.verdict import FEWEST
from curate.pipeline.agreement import Agreement, agree
from curate.pipeline.build import choose_device
from curate.pipeline.forecast import seconds_of
from curate.pipeline.job import Job, prepare
from curate.pipeline.score import selector_for
from curate.recipe import Recipe, fingerprint
from curate.recipe.names import POLICIES
from curate.rules import State, as_sgd
from curate.runtime.files import write_whole, write_whole_text
from curate.runtime.journal import Journal
from curate.runtime.lock import alone
from curate.runtime.parts import Parts
from curate.runtime.progress import Phases
from curate.runtime.resume import existing_parent
from curate.runtime.threads import suitable_threads
from curate.runtime.units import duration
from curate.selection import Array
from curate.selection.budget import share_out
from curate.selection.driver import Decided, Selector
from curate.selection.judge import Judged
from curate.selection.ledger import Scores
from curate.trajectory import Step, forward_step, record, replay

JOURNAL, LOCK = "verify.partial.jsonl", "verify.lock"
Occurrences = Literal["every", "last"]


@dataclass(frozen=True)
class RemovalPlan:
    """What is to be verified.

    examples: rows to leave out. occurrences: within a window, out of every step that
    has the row, or out of the last. mistaken: score as if the optimizer had been SGD, too.
    """

    examples: int = 64
    occurrences: Occurrences = "every"
    mistaken: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("examples", 2), ("seed", 0)):
            if (value := getattr(self, name)) < least:
                raise UserError(f"--{name} must be at least {least} but got {value}.")


@dataclass(frozen=True)
class Verified:
    """What a verification came to.

    table: a row per row left out, see `verify`. agreement: of the run's own scores with
    the truth; mistaken: of those of SGD. expected: the error that the run itself expects of these
    scores (mean, loss units), None if it was not asked (`selection.probing` is 0).
    """

    table: pl.DataFrame
    agreement: Agreement
    mistaken: Agreement | None
    expected: float | None
    scores: Scores


def verify(
    job: Job, plan: RemovalPlan, out: Path, phases: Phases, say: Callable[[str], None]
) -> Verified:
    """Score the recipe's run, leave rows out of its windows one at a time, and compare.

    The run is the one that `curate select` scores: window by window, each trained
    on what the one before kept. Rows are drawn in every window (or in some, if there
    are more of them than examples), one from each of as many strata of equal size
    by influence. A row is left out of its window's steps in the run's removal convention and
    the window is trained again from there to its end.

    Cost: the run once, and K / 2 steps per example on average. Every measurement is
    entered in a journal in `out` at once, and a second run with the same plan on the same data
    takes it from there; it is left for the caller to remove when the result is safe.

    Returns:
        with a table of `row` (position in the source), `first_step` of the window, `step`
        (in the window, the first that it was left out of), `influence` (predicted change of the
        mean target loss; positive helps), `actual` (the change), `error` (expected
        absolute error), and `influence_sgd`.

    Raises:
        UserError: the journal cannot be written.
    """
    selector, state, steps = selector_for(job, job.recipe.selection.policy)
    count = len(job.data.examples)
    windows = range(0, len(steps), selector.horizon)
    quotas = dict(zip(windows, _spread(plan.examples, len(windows)), strict=True))
    ticks = selector.ticks(len(steps)) + plan.examples * (min(selector.horizon, len(steps)) // 2)
    shape, epoch = selector.shape(steps), count / job.recipe.training.batch_size
    last = plan.occurrences == "last"
    total = passes(shape).total + leaving_out_passes(shape, plan.examples, epoch, last=last)
    say(_announcement(selector, state, steps, quotas, total))
    undertaking = f"{fingerprint(job.recipe)} {plan} {json.dumps(job.data.sources)}"
    journal = Journal(out / JOURNAL, undertaking)
    with phases.phase("verify", ticks) as tick:
        verifier = Verifier(job, selector, plan, quotas, journal, tick)
        scores = selector.run(state, steps, tick, on_window=verifier.leave_out_rows)
    table = verifier.table(scores)
    truth = table["actual"].to_numpy()
    return Verified(
        table,
        agree(table["influence"].to_numpy(), truth),
        agree(table["influence_sgd"].to_numpy(), truth) if plan.mistaken else None,
        float(table["error"].mean()) if scores.windows else None,  # type: ignore[arg-type]
        scores,
    )


@dataclass
class Verifier:
    """Goes from window to window and leaves rows out; `rows` has what came of each."""

    job: Job
    selector: Selector
    plan: RemovalPlan
    quotas: dict[int, int]
    journal: Journal
    tick: Callable[[], None]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def leave_out_rows(self, state: State, decided: Decided) -> None:
        """Leave out the rows that this window has a quota for."""
        first, judged, judge = decided.first_step, decided.judged, self.selector.judge
        if not self.quotas[first]:
            return
        assert judged.scores is not None
        assert judged.final is not None
        occurrences = _occurrences(judged.steps, self.plan.occurrences)
        influences = [step.numpy() for step in judged.scores.overall]
        sizes = [size_of(step).numpy() for step in judged.scores.overall]
        mistaken = self._mistaken(state, judged) if self.plan.mistaken else None
        predicted = {row: _total(influences, places) for row, places in occurrences.items()}
        drawn = _one_of_each_stratum(predicted, self.quotas[first], self.plan.seed + first)
        base = self._losses(judged.final)
        at, current = 0, state
        for row in sorted(drawn, key=lambda row: occurrences[row][0]):
            places = occurrences[row]
            start = places[0][0]
            if (actual := self.journal.find(first, row)) is None:
                current = replay(judge.task, judge.rule, current, judged.steps[at:start])
                at = start
                changed = self._without(judged, places)[start:]
                final = replay(judge.task, judge.rule, current, changed, self.tick)
                change = float(over_targets(judge.targets, self._losses(final) - base))
                actual = self.journal.enter(first, row, value=change)
            self.rows.append(
                {
                    "row": int(self.job.data.examples.rows[row]),
                    "first_step": first,
                    "step": start,
                    "influence": predicted[row],
                    "actual": actual,
                    "size": _total(sizes, places),
                }
                | ({} if mistaken is None else {"influence_sgd": _total(mistaken, places)})
            )

    def table(self, scores: Scores) -> pl.DataFrame:
        """The rows left out, with the error that the run expects of each influence."""
        ratio = {w.first_step: w.error / w.signal for w in scores.windows if w.signal > 0}
        errors = [ratio.get(row["first_step"], float("nan")) * row["size"] for row in self.rows]
        error = pl.Series(errors, dtype=pl.Float64)
        return pl.DataFrame(self.rows).with_columns(error=error).drop("size")

    def _losses(self, state: State) -> torch.Tensor:
        judge = self.selector.judge
        return target_losses(judge.task.model, judge.task.objective, judge.targets, state.theta)

    def _without(self, judged: Judged, places: Sequence[tuple[int, int]]) -> list[Step]:
        assert judged.scores is not None
        changed, removal = [*judged.steps], self.selector.judge.scoring.removal
        for k, position in places:
            changed[k] = leave_out(changed[k], position, judged.scores.sizes[k], removal)
        return changed

    def _mistaken(self, state: State, judged: Judged) -> list[Array]:
        judge = self.selector.judge
        recording = record(
            judge.task,
            judge.rule,
            state,
            judged.steps,
            snapshots=judge.snapshots,
            disk=judge.disk,
            sharded=judge.sharded,
        )
        scoring = Scoring(removal=judge.scoring.removal, mistaken_rule=as_sgd(judge.rule))
        scores = score_window(judge.task, judge.rule, recording, judge.targets, scoring=scoring)
        return [step.numpy() for step in scores.overall]


def _announcement(
    selector: Selector, state: State, steps: Sequence[Step], quotas: dict[int, int], total: float
) -> str:
    """What is going to happen, and how long its passes will take about."""
    task, rule, examples = selector.judge.task, selector.judge.rule, sum(quotas.values())
    seconds = total * seconds_of(lambda: forward_step(task, rule, state, steps[0]), task)
    windows = sum(count > 0 for count in quotas.values())
    return (
        f"leaving out {examples} of {len(task.examples)} rows, one at a time, in {windows} "
        f"of {len(quotas)} windows of {selector.horizon} steps; about {duration(seconds)}"
    )


def _spread(examples: int, windows: int) -> list[int]:
    """Examples per window: as even as can be, over the whole run."""
    if examples >= windows:
        return share_out(examples, np.ones(windows))
    ends = np.arange(1, windows + 1) * examples // windows
    return [int(n) for n in np.diff(ends, prepend=0)]


def _occurrences(steps: Sequence[Step], which: Occurrences) -> dict[int, list[tuple[int, int]]]:
    """By row, the (step, position) in a window that it is left out of, in order."""
    places: dict[int, list[tuple[int, int]]] = {}
    for k, step in enumerate(steps):
        for position, row in enumerate(step.rows.tolist()):
            places.setdefault(row, []).append((k, position))
    return places if which == "every" else {row: where[-1:] for row, where in places.items()}


def _total(values: Sequence[Array], places: Sequence[tuple[int, int]]) -> float:
    return float(sum(values[k][position] for k, position in places))


def _one_of_each_stratum(values: dict[int, float], count: int, seed: int) -> list[int]:
    """`count` keys, one drawn from each of as many equal parts of their order by value."""
    random = np.random.default_rng(seed)
    ordered = sorted(values, key=lambda key: values[key])
    return [int(random.choice(part)) for part in np.array_split(ordered, min(count, len(ordered)))]


def reproduces(table: pl.DataFrame, scores: Scores) -> bool:
    """Whether scoring again gave the influences of a saved `scores.parquet`, of those scored."""
    assert scores.influence is not None
    saved, again = table.sort("row")["influence"].drop_nulls().to_numpy(), scores.influence
    if saved.shape != again.shape:
        return False
    return bool(np.abs(saved - again).max() <= 1e-3 * np.abs(saved).max())


def run_verify(
    recipe: Recipe,
    out: Path | str,
    plan: RemovalPlan = RemovalPlan(),
    *,
    run: Path | str | None = None,
    device: str = "auto",
    phases: Phases | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Verified, dict[str, Any]]:
    """Leave examples out of a recipe's run and see what its influences are worth, see `verify`.

    Writes `verify.parquet`, `verify.png` and `verify.json` to `out`, over earlier ones.

    Args:
        run: the directory that `curate select` wrote, whose scores these are: its data must
            still be the same, and the summary says whether its influences were found again.
        say: gets an announcement before the work starts.

    Returns:
        The verification, and the summary that `--json` prints.

    Raises:
        UserError: nothing can be verified; why is in the message.
    """
    phases, out = phases or Phases(), Path(out)
    if plan.examples < FEWEST:
        say(
            f"note: {plan.examples} examples are too few for a verdict; leave out {FEWEST} or more "
            "with --examples."
        )
    if not POLICIES[recipe.selection.policy].goes_back:
        raise UserError(
            f"selection.policy: {recipe.selection.policy} has no influences to verify; "
            "verify needs look_ahead."
        )
    with phases.phase("read"):
        job = prepare(recipe, choose_device(device), existing_parent(out))
    saved, count = None, len(job.data.examples)
    if plan.examples > count:
        raise UserError(f"--examples: is {plan.examples}, but there are only {count} candidates.")
    if run is not None:
        refuse_other_data(Path(run), job.data.sources)
        saved = saved_influences(Path(run))
    taken = f"{out}: another process is verifying there; wait for it, or choose another --out."
    with alone(out / LOCK, taken):
        with suitable_threads(job.step_flops()):
            verified = verify(job, plan, out, phases, say)
        same = None if saved is None else reproduces(saved, verified.scores)
        return verified, _write(recipe, out, plan, verified, phases, same)


def _write(
    recipe: Recipe,
    out: Path,
    plan: RemovalPlan,
    verified: Verified,
    phases: Phases,
    reproduced: bool | None,
) -> dict[str, Any]:
    """Write what was measured, then draw it; returns the summary."""
    table, agreement, mistaken = verified.table, verified.agreement, verified.mistaken
    summary = {
        "examples": len(table),
        "occurrences": plan.occurrences,
        "horizon": recipe.selection.horizon,
        "agreement": agreement.as_dict(),
        "verdict": agreement.verdict(),
        "mistaken": None if mistaken is None else mistaken.as_dict(),
        "expected_error": verified.expected,
        "reproduced": reproduced,
        "seconds": {name: round(value, 3) for name, value in phases.seconds.items()},
        "out": str(out),
    }
    correlations = (agreement.spearman.value, mistaken.spearman.value if mistaken else None)
    text = json.dumps(made_with() | {"recipe_fingerprint": fingerprint(recipe)} | summary, indent=2)
    write_whole(out / "verify.parquet", table.write_parquet)
    write_whole_text(out / "verify.json", text + "\n")
    parts, png = Parts(), out / "verify.png"
    parts.attempt(
        png.name,
        lambda: write_whole(png, lambda part: plot_verification(table, *correlations, part)),
    )
    if not parts.missing:
        (out / JOURNAL).unlink()
    return summary | parts.outcome()
