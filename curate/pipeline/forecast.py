"""What a run will take: its passes, memory and files, and seconds by timing a few of its steps."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from curate.influence import Differences, Point, target_gradients, target_graph
from curate.influence.cost import RunShape, checks, passes, work
from curate.pipeline.amortize import passes_to_predict
from curate.pipeline.build import choose_device
from curate.pipeline.job import Job, prepare
from curate.pipeline.nearness import nearness_passes
from curate.pipeline.remarks import horizon_remark, remarks
from curate.pipeline.retraining import juries, training_steps
from curate.pipeline.score import selector_for
from curate.pipeline.space import Sizes, disk, memory
from curate.pipeline.worth import trainings
from curate.recipe import Recipe
from curate.rules import State
from curate.runtime.large import held, resident
from curate.runtime.progress import Phases
from curate.runtime.ranks import ALONE, Ranks, agreed
from curate.runtime.resume import existing_parent
from curate.runtime.threads import suitable_threads
from curate.runtime.units import duration, memory_bytes
from curate.selection.driver import Selector, SoFar
from curate.selection.judge import Judge
from curate.selection.ledger import ledger_columns
from curate.selection.policies import LookAhead
from curate.trajectory import (
    Snapshots,
    Step,
    Task,
    forward_step,
    graph_size,
    ignore_step,
    replay,
    shard_bytes,
)

ARRAYS = (3, 1, 1, 1, 4, 2, 2, 2, 1, 1, 2, 1, 1)
"""Numbers of a row beside the sums of its scores, array by array: errors, means, losses, ranks."""
OUTPUT = 96 * 2**20
"""Bytes that writing and the report take, whatever the number of rows: what draws its figures, and
batches."""
WRITTEN_ROW, WRITTEN_BYTES = 1e-6, 4e8
REPORT, REPORTED_ROW = 1.5, 1.5e-6
"""Seconds of writing a row and its scores, and bytes of rows a second; of a report, and for a row:
on two cores of a laptop."""
FEW = 8
"""Steps that are timed together: two where one takes longer than `SLOW` seconds."""
SLOW = 0.2
GLANCE, SPAN = 0.01, 0.3
"""Seconds for which something is repeated to time it, roughly and properly."""
LONG, UNSURE = 60.0, 6.0
"""Seconds of a run that are worth an announcement; how far off passes by themselves may be."""


@dataclass(frozen=True)
class Prices:
    """Seconds on this machine, as it is now; those of the first process if there are several.

    forward: a step of plain training. kept: one on what is kept of a batch. scored: a step
    recorded, scored and decided. targets: a gradient of all targets. file: a state written and read
    again. read: all rows, which the plan itself reads. memory: bytes that the process takes after
    all that was timed; 0 where nobody knows.
    """

    forward: float
    kept: float
    scored: float
    targets: float
    file: float
    read: float = 0.0
    memory: int = 0


@dataclass(frozen=True)
class Forecast:
    """What a selection run will take; `summary` has it in plain values.

    run: the scored run; baselines: runs of other policies that it is compared with.
    everything: steps of training on everything, measuring it included; judged: about how many that
    and retraining take, to see what choosing is worth. predicted: what it takes to predict scores,
    in steps. retrained: steps of training from scratch after that. graph, target_graph: bytes of
    the graph of a step, and of the part of the targets that is differentiated at a time. process:
    what it takes before the first step.
    """

    job: Job
    selector: Selector
    state: State
    steps: Sequence[Step]
    run: RunShape
    baselines: Sequence[RunShape]
    everything: float
    judged: float
    predicted: float
    retrained: int
    graph: int
    target_graph: int
    process: int = 0

    def passes(self) -> dict[str, float]:
        """Gradients of one batch, part by part and in total."""
        parts = asdict(passes(self.run)) | {
            "baselines": sum(passes(run).total for run in self.baselines),
            "judge": self.judged,
            "predict": self.predicted,
            "retrain": float(self.retrained),
        }
        return _with_total(parts)

    def seconds(self, prices: Prices) -> dict[str, float]:
        """Seconds by the prices: of scoring, judging, evaluation, and in total."""
        done, run = work(self.run), self.run
        if run.goes_back:
            again = done.scored - done.kept + done.redone + passes(run).probes
            looks = done.target_passes + done.target_looks / 3
            scoring = done.scored * prices.scored + again * prices.forward
            scoring += looks * prices.targets + done.written * prices.file
        else:
            scoring = done.recorded * prices.forward
        baselines = sum(
            work(other).recorded * prices.forward + work(other).committed * prices.kept
            for other in self.baselines
        )
        whole = self.job.on_whole().data
        rows, size = len(whole.examples), whole.table.data.nbytes
        return _with_total(
            {
                "read": prices.read,
                "score": scoring + done.committed * prices.kept + self.predicted * prices.forward,
                "judge": self.judged * prices.forward,
                "evaluate": baselines + self.retrained * prices.forward,
                "write": rows * WRITTEN_ROW + size / WRITTEN_BYTES,
                "report": REPORT + rows * REPORTED_ROW,
            }
        )

    def by_phase(self, prices: Prices) -> dict[str, float]:
        """Seconds by the phases of `run_select`, in their order."""
        seconds, forward = self.seconds(prices), prices.forward
        everything, predicted = self.everything, self.predicted
        learned = min(self.job.total_steps(), predicted)
        return {
            f"score ({self.job.recipe.selection.policy})": seconds["score"] - predicted * forward,
            "train on everything": everything * forward,
            "judge": (self.judged - everything) * forward,
            "learn": learned * forward,
            "predict": (predicted - learned) * forward,
            "write": seconds["write"],
            "retrain": seconds["evaluate"],
            "report": seconds["report"],
        }

    def summary(self, prices: Prices) -> dict[str, Any]:
        """Plain values, for `--json`."""
        run, state, judge = self.run, self.state, self.selector.judge
        task = judge.task
        sizes = Sizes(
            parameters=sum(tensor.nbytes for tensor in task.model.held),
            state=state.nbytes(),
            kept=shard_bytes(state, task.ranks) if judge.sharded else state.nbytes(),
            gradient=state.theta.nbytes,
            graph=self.graph,
            targets=self.target_graph,
            examples=memory_bytes(self.job.recipe.trajectory.gradients),
        )
        rows = [len(step.rows) for step in self.steps]
        return {
            "policy": self.job.recipe.selection.policy,
            "candidates": len(self.job.on_whole().data.examples),
            "scored": len(task.examples),
            "parameters": task.model.size,
            "steps": len(self.steps),
            "windows": len(run.windows),
            "horizon": run.longest,
            "rounds": run.rounds,
            "device": str(self.job.device),
            "processes": task.ranks.size,
            "passes": {name: round(count, 1) for name, count in self.passes().items()},
            "memory": _with_total(self._memory(sizes, prices.memory)),
            "disk": _with_total(disk(run, sizes, len(task.examples), rows)),
            "seconds": self.seconds(prices),
        }

    def _memory(self, sizes: Sizes, warm: int) -> dict[str, int]:
        """Bytes of the device; on a CPU, of the process, which has read its rows already.

        `warm`: what it takes after its first steps. What they took beside their parts, libraries
        that were loaded and buffers that torch keeps, will be taken again.
        """
        parts = memory(self.run, sizes)
        if self.job.device.type != "cpu":
            return parts
        count, targets = len(self.job.data.examples), len(self.selector.judge.targets)
        rows = held(8 * count * width for width in (ledger_columns(targets, halved=True), *ARRAYS))
        first = memory(replace(self.run, kept=self.run.kept[:FEW]), sizes)
        process = self.process - parts["parameters"]
        parts["buffers"] = max(0, warm - process - sum(first.values()))
        to_come = sum(parts.values()) - parts["parameters"] + rows
        return {"process": process, **parts, "rows": rows, "output": max(0, OUTPUT - to_come)}


def forecast(job: Job) -> Forecast:
    """Count what `curate select` of a job will do."""
    selection, evaluation = job.recipe.selection, job.recipe.compared()
    whole = job.on_whole()
    selector, state, steps = selector_for(job, selection.policy, halved=True)
    against = set(evaluation.against) if evaluation else set()
    ways = len(against | {selection.policy}) * len(evaluation.seeds) if evaluation else 0
    baselines = []
    if "loss" in against - {selection.policy}:
        other, _, loss_steps = selector_for(whole, "loss")
        baselines.append(other.shape(loss_steps))
    judge = selector.judge
    task = judge.task
    process = resident()[0]
    graph = int(agreed(task.ranks, graph_size(task, state.theta, steps[0])))
    run = selector.shape(steps)
    if run.goes_back and run.longest > 1:
        run = replace(run, kinked=bool(Point(task, state.theta, steps[0]).kinked))
    everything = judged = 0.0
    judges = bool(selection.judge and job.data.validation)
    if judges or (selector.halves is not None and selection.rounds == 1):
        everything = judged = training_steps(job, len(juries(job))) + nearness_passes(job)
    if judges:
        auto, corrected = bool(selection.keep.auto), job.data.formerly is not None
        more = trainings(auto, judge.target_rows, corrected=corrected) - 1
        judged += more * training_steps(job)
    return Forecast(
        job,
        selector,
        state,
        steps,
        run,
        baselines,
        everything,
        judged,
        0.0 if job.recipe.score is None else passes_to_predict(job),
        ways * whole.total_steps(),
        graph,
        target_graph(task.model, task.objective, judge.targets, state.theta, task.ranks),
        process,
    )


def measure(plan: Forecast) -> Prices:
    """Time a few steps of a run, done in every way in which it does them.

    About two seconds for small models; for others, the time of some fifty passes.
    """
    judge, state, run = plan.selector.judge, plan.state, plan.run
    task, rule = judge.task, judge.rule
    first = plan.steps[0]
    one = seconds_of(lambda: forward_step(task, rule, state, first), task, GLANCE)
    few = plan.steps[: min(run.longest, FEW if one < SLOW else 2)] if run.windows else [first]
    kept = max(1, round(run.kept[0] * len(first.rows))) if run.kept else len(first.rows)
    less = [step.keep(torch.arange(min(kept, len(step.rows)))) for step in few]

    def seconds_a_step(steps: Sequence[Step]) -> float:
        return seconds_of(lambda: replay(task, rule, state, steps), task) / len(steps)

    forward, cut = seconds_a_step(few), seconds_a_step(less)
    if not run.goes_back:
        return Prices(forward, cut, 0, 0, 0)
    targets = seconds_of(
        lambda: target_gradients(
            task.model, task.objective, judge.targets, state.theta, ranks=task.ranks
        ),
        task,
    )
    once = replace(
        judge,
        policy=LookAhead(1),
        snapshots=len(few),
        gradients=len(few),
        disk=None,
        differences=Differences(),
    )
    selector = replace(plan.selector, judge=once, horizon=len(few), probing=0.0)
    so_far = SoFar(selector, state, few, None)

    def score() -> None:
        decided = selector.decide(so_far.judge_window(ignore_step))
        so_far.enter(decided)
        decided.outcome()

    score()  # which finds out how far to step, as is done once a run
    seconds = max(0.0, seconds_of(score, task) - targets) / len(few)
    tried = replace(selector.shape(few), kinked=run.kinked)
    again = _scoring_passes(tried) - checks(tried) / len(few)
    scored = seconds * _scoring_passes(run) / again
    return Prices(forward, cut, scored, targets, _file_seconds(judge, state))


def _scoring_passes(run: RunShape) -> float:
    """Passes of a step that is recorded and scored, its part of what is done once a run included.

    Without those that are done again for want of memory.
    """
    done, parts = work(run), passes(run)
    return (parts.record + parts.score - (done.scored - done.kept)) / done.scored


def announce(job: Job, say: Callable[[str], None], phases: Phases) -> None:
    """Say what is odd about a job, and about how long it will take if longer than `LONG`.

    phases: is told how long each will be. Cost: a step, and `measure` where a rough guess from
    that step comes near.
    """
    for remark in remarks(job.recipe, job.data):
        say(f"note: {remark}")
    plan = forecast(job)
    if not plan.steps:
        return
    if beyond := horizon_remark(job.recipe, len(plan.steps)):
        say(f"note: {beyond}")
    judge, first = plan.selector.judge, plan.steps[0]
    one = seconds_of(
        lambda: forward_step(judge.task, judge.rule, plan.state, first), judge.task, GLANCE
    )
    short, run = one * plan.passes()["total"] < LONG / UNSURE, plan.run
    prices = Prices(one, one / 2, 2 * one, run.target_share * one, 0.0) if short else measure(plan)
    phases.foresee(plan.by_phase(prices), alike=("train on everything", "judge", "retrain"))
    if short:
        return
    seconds = plan.seconds(prices)
    if seconds["total"] > LONG:
        say(
            f"this will take about {duration(seconds['total'])}: scoring "
            f"{duration(seconds['score'])} ({len(plan.steps):,} steps, horizon {run.longest:,}, "
            f"rounds {run.rounds}), judging {duration(seconds['judge'])}, evaluation "
            f"{duration(seconds['evaluate'])}"
        )


def seconds_of(do: Callable[[], object], task: Task, span: float = SPAN) -> float:
    """Mean seconds of one call, the first left aside, which warms up, unless it takes `span`.

    All ranks go by rank 0's clock, so that they call as often.
    """
    device = task.model.device
    seconds: list[float] = []
    while sum(seconds) < span:
        begin = time.perf_counter()
        do()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(agreed(task.ranks, time.perf_counter() - begin))
    return mean(seconds[1:] or seconds)


def _file_seconds(judge: Judge, state: State) -> float:
    if judge.disk is None:
        return 0.0
    kept = Snapshots(1, judge.disk, ranks=judge.task.ranks, sharded=judge.sharded)
    kept.push(0, state)
    begin = time.perf_counter()
    kept.push(1, state)
    kept.top()
    return time.perf_counter() - begin


def plan_select(
    recipe: Recipe, out: Path | str, *, device: str = "auto", ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Forecast what `run_select` takes, from its recipe and a few of its steps; writes nothing.

    Returns:
        plain values: candidates, steps, windows, passes, bytes of memory and disk (of each
        process), seconds.

    Raises:
        UserError: the recipe cannot be run; what to change is in the message.
    """
    begin = time.perf_counter()
    job = prepare(recipe, choose_device(device, ranks), existing_parent(Path(out)), ranks)
    read = time.perf_counter() - begin
    with suitable_threads(job.step_flops()):
        plan = forecast(job)
        prices = measure(plan)
        return plan.summary(replace(prices, read=read, memory=resident()[0]))


def _with_total(parts: dict[str, Any]) -> dict[str, Any]:
    return parts | {"total": sum(parts.values())}
