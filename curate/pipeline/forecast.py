"""How long a run will take: what it will do, by the clock of a few of its own steps."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from curate.influence import Differences, Point, target_gradients, target_graph
from curate.influence.cost import RunShape, _on_disk, passes, work
from curate.pipeline.build import choose_device
from curate.pipeline.job import Job, prepare
from curate.pipeline.remarks import horizon_remark, remarks
from curate.pipeline.score import selector_for
from curate.pipeline.worth import trainings
from curate.recipe import Recipe
from curate.rules import State
from curate.runtime.ranks import ALONE, Ranks, agreed
from curate.runtime.resume import existing_parent
from curate.runtime.savepoints import KEPT
from curate.runtime.threads import suitable_threads
from curate.runtime.units import duration, memory_bytes
from curate.selection.driver import Selector
from curate.selection.judge import Judge
from curate.selection.policies import LookAhead
from curate.trajectory import (
    HEADER,
    Snapshots,
    Step,
    Task,
    forward_step,
    graph_size,
    replay,
    shard_bytes,
)

AT_HAND = 5
"""Gradients and the like that a difference holds: the module's own, two summed, a shifted theta,
a direction; and one more per target."""
NUMBER = 8
"""Bytes of a score."""


FEW = 8
"""Steps that are timed together: two where one takes longer than `SLOW` seconds."""
SLOW = 0.2
GLANCE, SPAN = 0.01, 0.3
"""Seconds for which something is done over and over to time it, roughly and properly."""
LONG, UNSURE = 60.0, 6.0
"""Seconds of a run that are worth an announcement; how far off passes by themselves may be."""


@dataclass(frozen=True)
class Prices:
    """Seconds on this machine, as it is now; of several processes, those of the first.

    forward: a step of plain training. kept: one on what is kept of a batch. scored: a step
    recorded and scored. targets: a gradient of all targets. file: a state written and read again.
    """

    forward: float
    kept: float
    scored: float
    targets: float
    file: float


@dataclass(frozen=True)
class Forecast:
    """What a selection run will take; `summary` has it in plain values.

    run: the scored run; baselines: runs of other policies that it is compared with.
    judged: steps of training on everything, and of retrainings that say what choosing is worth,
    about. retrained: steps of training from scratch after that. graph,
    target_graph: bytes of the graph of a step, of as much of the targets as is gone through at
    a time.
    """

    job: Job
    selector: Selector
    state: State
    steps: Sequence[Step]
    run: RunShape
    baselines: Sequence[RunShape]
    judged: int
    retrained: int
    graph: int
    target_graph: int

    def passes(self) -> dict[str, float]:
        """Gradients of one batch, part by part and in total."""
        parts = asdict(passes(self.run))
        others = sum(passes(run).total for run in self.baselines)
        parts |= {"baselines": others, "judge": float(self.judged)}
        parts["retrain"] = float(self.retrained)
        return parts | {"total": sum(parts.values())}

    def seconds(self, prices: Prices) -> dict[str, float]:
        """What scoring will take by the prices, and retraining, and both."""
        own, expected = work(self.run), passes(self.run)
        if self.run.goes_back:
            again = own.scored - own.kept + own.redone + expected.probes
            scoring = own.scored * prices.scored + again * prices.forward
            looks = own.target_passes + own.target_looks / 3
            scoring += looks * prices.targets + own.written * prices.file
        else:
            scoring = own.recorded * prices.forward
        scoring += own.committed * prices.kept
        others = sum(
            work(run).recorded * prices.forward + work(run).committed * prices.kept
            for run in self.baselines
        )
        judging = self.judged * prices.forward
        after = others + self.retrained * prices.forward
        total = scoring + judging + after
        return {"score": scoring, "judge": judging, "evaluate": after, "total": total}

    def summary(self, prices: Prices) -> dict[str, Any]:
        """Plain values, for `--json`."""
        run, trajectory = self.run, self.job.recipe.trajectory
        judge = self.selector.judge
        task, kept = judge.task, self.state.nbytes()
        if judge.sharded:
            kept = shard_bytes(self.state, task.ranks)
        sizes = Sizes(
            parameters=sum(tensor.nbytes for tensor in task.model.held),
            state=self.state.nbytes(),
            kept=kept,
            gradient=self.state.theta.nbytes,
            graph=self.graph,
            targets=self.target_graph,
            examples=memory_bytes(trajectory.gradients),
        )
        bytes_held = memory(run, sizes)
        files = disk(run, sizes, len(task.examples), [len(step.rows) for step in self.steps])
        return {
            "policy": self.job.recipe.selection.policy,
            "candidates": len(task.examples),
            "parameters": task.model.size,
            "steps": len(self.steps),
            "windows": len(run.windows),
            "horizon": run.longest,
            "rounds": run.rounds,
            "device": str(self.job.device),
            "processes": task.ranks.size,
            "passes": {name: round(count, 1) for name, count in self.passes().items()},
            "memory": asdict(bytes_held) | {"total": bytes_held.total},
            "disk": asdict(files) | {"total": files.total},
            "seconds": self.seconds(prices),
        }


def forecast(job: Job) -> Forecast:
    """What `curate select` of a job will do."""
    selection, evaluation = job.recipe.selection, job.recipe.evaluation
    selector, state, steps = selector_for(job, selection.policy, halved=True)
    against = set(evaluation.against) if evaluation else set()
    ways = len(against | {selection.policy}) * len(evaluation.seeds) if evaluation else 0
    baselines = []
    if "loss" in against - {selection.policy}:
        other, _, whole = selector_for(job, "loss")
        baselines.append(other.shape(whole))
    judge = selector.judge
    task = judge.task
    graph = int(agreed(task.ranks, graph_size(task, state.theta, steps[0])))
    run = selector.shape(steps)
    if run.goes_back and run.longest > 1:
        run = replace(run, kinked=bool(Point(task, state.theta, steps[0]).kinked))
    judged, total = 0.0, job.total_steps()
    if selection.judge and job.data.validation:
        judged = trainings(bool(selection.keep.auto), judge.target_rows) * total
    elif selector.halves is not None and selection.rounds == 1:
        judged = total
    return Forecast(
        job,
        selector,
        state,
        steps,
        run,
        baselines,
        round(judged),
        ways * total,
        graph,
        target_graph(task.model, task.objective, judge.targets, state.theta, task.ranks),
    )


def measure(plan: Forecast) -> Prices:
    """Do a few steps of a run, in every way in which it does them, and time them.

    About two seconds for small models; for others, the time of some fifty passes.
    """
    judge, state, run = plan.selector.judge, plan.state, plan.run
    task, rule = judge.task, judge.rule
    first = plan.steps[0]
    one = seconds_of(lambda: forward_step(task, rule, state, first), task, GLANCE)
    few = plan.steps[: min(run.longest, FEW if one < SLOW else 2)] if run.windows else [first]
    kept = max(1, round(run.kept[0] * len(first.rows))) if run.kept else len(first.rows)
    less = [step.keep(torch.arange(min(kept, len(step.rows)))) for step in few]
    forward, cut = (
        seconds_of(lambda own=own: replay(task, rule, state, own), task) / len(few)  # type: ignore[misc]
        for own in (few, less)
    )
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
    scored = max(0.0, seconds_of(lambda: once.judge(state, few), task) - targets) / len(few)
    return Prices(forward, cut, scored, targets, _file_seconds(judge, state))


def estimate_line(plan: Forecast, prices: Prices) -> str:
    """What is going to happen, and how long it will take about, in one line."""
    run, seconds = plan.run, plan.seconds(prices)
    return (
        f"this will take about {duration(seconds['total'])}: scoring "
        f"{duration(seconds['score'])} ({len(plan.steps):,} steps, horizon {run.longest:,}, "
        f"rounds {run.rounds}), judging {duration(seconds['judge'])}, evaluation "
        f"{duration(seconds['evaluate'])}"
    )


def announce(job: Job, say: Callable[[str], None]) -> None:
    """Say what is odd about a job, and how long it will take, if longer than `LONG`.

    Cost: a step, and `measure` where a rough guess from that step comes near.
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
    if one * plan.passes()["total"] < LONG / UNSURE:
        return
    prices = measure(plan)
    if plan.seconds(prices)["total"] > LONG:
        say(estimate_line(plan, prices))


def seconds_of(do: Callable[[], object], task: Task, span: float = SPAN) -> float:
    """Of one go: the mean of those after the first, which warms up; its own if it takes `span`.

    By rank 0's prices, so that all ranks go as often.
    """
    device = task.model.device
    found: list[float] = []
    while sum(found) < span:
        begin = time.perf_counter()
        do()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(agreed(task.ranks, time.perf_counter() - begin))
    return mean(found[1:] or found)


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
    recipe: Recipe, out: Path, *, device: str = "auto", ranks: Ranks = ALONE
) -> dict[str, Any]:
    """What `run_select` will do and take, from its recipe and a few of its steps; writes nothing.

    Returns:
        plain values: candidates, steps, windows, passes, bytes of memory and disk (of each
        process), seconds.

    Raises:
        UserError: it cannot be run; what to change is in the message.
    """
    job = prepare(recipe, choose_device(device, ranks), existing_parent(out), ranks)
    with suitable_threads(job.step_flops()):
        plan = forecast(job)
        return plan.summary(measure(plan))


@dataclass(frozen=True)
class Memory:
    """Bytes that a run holds at its fullest, part by part.

    parameters: of the model itself, frozen ones included. snapshots: states kept, or one
    rank's shares of them, and the two whole ones at hand (two more with a disk or shares).
    recorded: gradients kept beside them, and those at hand. graph: of the step or the part
    of the targets at hand, whichever is larger. adjoints: Q states, before and after a step.
    gradients: example by example, for the exact jump.
    """

    parameters: int
    snapshots: int
    recorded: int
    graph: int
    adjoints: int
    gradients: int

    @property
    def total(self) -> int:
        """All of it."""
        return int(sum(getattr(self, field.name) for field in fields(self)))


@dataclass(frozen=True)
class Sizes:
    """Bytes of what a run is made of.

    parameters: of the model. state: of a training state; kept: of one where it is kept, which may
    be a share of it. gradient: of a step's. graph, targets: of the graph of a step, of the part of
    the targets gone through at a time. examples: what gradients example by example may take.
    """

    parameters: int
    state: int
    kept: int
    gradient: int
    graph: int
    targets: int
    examples: int


def memory(run: RunShape, sizes: Sizes) -> Memory:
    """Bytes that a run holds at its fullest, in each of its processes."""
    if not run.goes_back:
        return Memory(sizes.parameters, 3 * sizes.state, 0, sizes.graph, 0, 0)
    at_hand = 4 if run.disk or sizes.kept < sizes.state else 2
    return Memory(
        parameters=sizes.parameters,
        snapshots=min(run.memory, run.longest) * sizes.kept + at_hand * sizes.state,
        recorded=(min(run.gradients, run.longest) + AT_HAND + run.targets) * sizes.gradient,
        graph=max(sizes.graph + (sizes.graph // 4 if run.kinked else 0), sizes.targets),
        adjoints=2 * run.targets * sizes.state,
        gradients=sizes.examples if run.exact_jump else 0,
    )


@dataclass(frozen=True)
class Files:
    """Bytes that a process has in files at their most, beside the result.

    snapshots: states kept for the way back. savepoints: what a run that dies goes on from,
    written by the first process.
    """

    snapshots: int
    savepoints: int

    @property
    def total(self) -> int:
        """Both."""
        return self.snapshots + self.savepoints


def disk(run: RunShape, sizes: Sizes, candidates: int, rows: Sequence[int]) -> Files:
    """What a run has on disk.

    A savepoint holds a whole state, the scores so far, what the error of influences is known
    from, and between the rounds of a window the state at its end and what was found in it; not
    counted are some hundred bytes for every window.

    Args:
        candidates: how many there are. rows: how many every step has.
    """
    snapshots = _on_disk(run, run.longest) * (sizes.kept + HEADER) if run.goes_back else 0
    if not run.windows:
        return Files(snapshots, 0)
    each = [sum(rows[k] for k in window) for window in run.windows]
    targets = run.targets if run.goes_back else 0
    size = sizes.state + NUMBER * candidates * (2 + targets)
    size += NUMBER * sum(each) * 2 if run.probing else 0
    if run.rounds > 1:
        size += sizes.state + NUMBER * max(each) * (3 + 2 * targets)
    return Files(snapshots, min(KEPT + 1, run.rounds * len(run.windows)) * size)
