"""From a recipe to the objects that it describes: data, model, rule, steps."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from curate import models, rules
from curate.datasets import PairExamples
from curate.datasets.tensors import large_tensor
from curate.errors import RecipeError
from curate.models import FlatModel, Objective, Preference, log_probabilities
from curate.models.randomness import seeded, usual_sources
from curate.output.directory import made_with
from curate.pipeline.build import assign_groups, build_module, build_rule, param_groups
from curate.pipeline.candidates import Candidates, read_candidates
from curate.pipeline.steps import Planned, planned
from curate.recipe import Recipe, fingerprint, resolved
from curate.recipe.names import find_objective
from curate.rules import Rule, State, initial_state
from curate.runtime.allocator import keep_large_blocks
from curate.runtime.files import digest_of
from curate.runtime.large import resident
from curate.runtime.ranks import ALONE, Ranks, require_same
from curate.runtime.resume import LOSSES
from curate.runtime.units import memory_bytes
from curate.selection import Array
from curate.trajectory import HEADER, Disk, Task, chunk_losses, shard_bytes
from curate.trajectory.measure import step_flops

MOST_STEPS = 10_000_000
SAMPLING = 5
VECTORS = 32
"""Vectors as long as the parameters that a run holds beside states and gradients, at most."""
TOGETHER = 32
"""Pairs whose reference is taken at a time, or fewer where they are long."""


@dataclass(frozen=True)
class Job:
    """A recipe made concrete on one device. Runs of it differ only by seed and rows.

    whole: all candidates, where only a sample of them is scored, which is then `data`; and sample:
    the positions of those, ascending, shape (n,). Both None where all are scored.
    scratch: where temporary files may go; None is the system's place for them.
    ranks: the processes that share it.
    """

    recipe: Recipe
    device: torch.device
    data: Candidates
    objective: Objective
    scratch: Path | None = None
    ranks: Ranks = ALONE
    whole: Candidates | None = None
    sample: Array | None = None
    _built: dict[int, tuple[FlatModel, Rule]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def on_whole(self) -> "Job":
        """The job of all candidates."""
        return self if self.whole is None else replace(self, data=self.whole, whole=None)

    def start(self, seed: int) -> tuple[Task, Rule, State]:
        """A freshly initialized model on all candidates, its rule, and its first state.

        That of the scored run is built once: a model is never trained in place, so that it can
        be started from again.
        """
        model, rule = self._built.get(seed) or self._build(seed)
        if seed == self.recipe.training.seed:
            self._built[seed] = model, rule
        return (
            Task(model, self.objective, self.data.examples, self.ranks),
            rule,
            initial_state(rule, self.ranks.same(model.read())),
        )

    def _build(self, seed: int) -> tuple[FlatModel, Rule]:
        dtype = getattr(torch, self.recipe.training.dtype)
        precision = self.recipe.training.precision
        with seeded(seed, usual_sources(self.device)):
            module = build_module(self.recipe, self.data).train()
        trainable = [name for name, p in module.named_parameters() if p.requires_grad]
        model = FlatModel(
            module,
            assign_groups(self.recipe, trainable),
            device=self.device,
            dtype=dtype,
            autocast=torch.bfloat16 if precision == "bf16" else None,
            tf32=precision != "float32",
        )
        return model, build_rule(self.recipe, model)

    def step_flops(self) -> int:
        """About how many arithmetic operations one training step takes."""
        task, _, _ = self.start(self.recipe.training.seed)
        return step_flops(task, self.steps(self.recipe.training.seed)[0])

    def first_losses(self) -> Tensor:
        """Losses of the first step's candidates before any training, shape (n,), on the CPU."""
        seed = self.recipe.training.seed
        task, _, state = self.start(seed)
        first = self.steps(seed)[0]
        with torch.no_grad():
            parts = [chunk_losses(task, state.theta, first, chunk) for chunk in first.chunks()]
        return torch.cat([part.losses for part in parts]).cpu()

    def made_of(self, threads: int) -> dict[str, Any]:
        """All that decides a run's result, to the last bit, in plain values.

        The losses of the first step stand for what no fingerprint reaches: the code of a model,
        its frozen weights, the kernels of a machine.
        """
        device = str(self.device)
        if self.device.type == "cuda":
            device += f" ({torch.cuda.get_device_name(self.device)})"
        return {
            "recipe": resolved(self.recipe),
            "data": self.data.sources,
            "device": device,
            "threads": threads,
            "processes": self.ranks.size,
            "versions": made_with()["versions"],
            LOSSES: digest_of(self.first_losses().tolist()),
        }

    def total_steps(self) -> int:
        """T, the optimizer steps of the scored run."""
        training = self.recipe.training
        return training.epochs * -(-len(self.data.examples) // training.batch_size)

    def scored_steps(self) -> int:
        """How many of the run's first steps are scored."""
        selection, training = self.recipe.selection, self.recipe.training
        if selection.horizon == "full":
            return self.total_steps()
        return self.total_steps() * min(selection.epochs, training.epochs) // training.epochs

    def steps(self, seed: int, rows: Tensor | None = None, total: int | None = None) -> Planned:
        """The T steps of a run over `rows` (all candidates if None), shuffled every epoch.

        A smaller set of rows is gone through more often: T, and with it the
        compute and the schedule, stays the same. `total`: another T, with the schedule to it.
        """
        training, count = self.recipe.training, total or self.total_steps()
        schedule = rules.Schedule(**training.schedule.model_dump())
        base = [section.lr for section in param_groups(self.recipe)]
        return planned(
            len(self.data.examples) if rows is None else rows,
            training.batch_size,
            count,
            seed,
            lambda t: tuple(lr * schedule.multiplier(t, count) for lr in base),
            training.micro_batch or 0,
        )


def prepare(
    recipe: Recipe, device: torch.device, scratch: Path | None = None, ranks: Ranks = ALONE
) -> Job:
    """Read the data and check that one step of the recipe can be done and differentiated.

    Raises:
        UserError: something in the data, the model or the optimizer is wrong.
    """
    data = read_candidates(recipe)
    require_same(ranks, "recipe and data", f"{fingerprint(recipe)} {json.dumps(data.sources)}")
    objective = models.load_objective(find_objective(recipe.objective).path)
    if recipe.target is not None and recipe.target.loss is not None:
        data = replace(data, goal=models.load_goal(recipe.target.loss, objective))
    if isinstance(objective, Preference) and recipe.training.beta is not None:
        objective.beta = recipe.training.beta
    job = _referred(_sampled(Job(recipe, device, data, objective, scratch, ranks)))
    if job.total_steps() > MOST_STEPS:
        raise RecipeError(
            f"training.epochs: {recipe.training.epochs} epochs are {job.total_steps()} steps, "
            f"more than the {MOST_STEPS} that can be planned; lower it."
        )
    task, _, state = job.start(recipe.training.seed)
    classes = None if data.classes is None else data.outputs
    models.require_trainable(task.model, objective, data.examples, classes)
    room, most = room_for_states(job, state, job.total_steps()), job.total_steps()
    if device.type == "cpu" and ranks.size == 1:
        vectors = min(room.gradients, most) + VECTORS
        states = min(room.memory, most) * state.nbytes() + vectors * state.theta.nbytes
        keep_large_blocks(resident()[0] + states)
    return job


def _sampled(job: Job) -> Job:
    """The job of the sample that is to be scored, where the recipe asks for one."""
    section, count = job.recipe.score, len(job.data.examples)
    if section is None or section.sample >= count:
        return job
    random = np.random.default_rng([job.recipe.data.seed, SAMPLING])
    sample = np.sort(random.choice(count, section.sample, replace=False))
    return replace(job, data=job.data.only(sample), whole=job.data, sample=sample)


def _referred(job: Job) -> Job:
    """The job with what the model, as it starts, makes of all pairs, if rows are pairs."""
    data = job.data
    if not isinstance(data.examples, PairExamples):
        return job
    task, _, state = job.start(job.recipe.training.seed)

    def known(examples: Any) -> Any:
        reference = large_tensor((len(examples), 2), torch.float32)
        for rows in examples.chunks(TOGETHER):
            batch = examples.batch(rows, job.device)
            with task.model.computing(), torch.no_grad():
                reference[rows] = log_probabilities(module, batch).float().cpu()
        return examples.knowing(reference)

    with task.model.at(state.theta, training=False) as module:
        validation = {name: known(part) for name, part in data.validation.items()}
        test = None if data.test is None else known(data.test)
        data = replace(data, examples=known(data.examples), validation=validation, test=test)
    found = replace(job, data=data)
    found._built.update(job._built)
    return found


class Room(NamedTuple):
    """Room for a window's states in memory and in files, and for gradients. See `record`."""

    memory: int
    gradients: int
    disk: Disk | None
    sharded: bool


def room_for_states(job: Job, state: State, steps: int) -> Room:
    """How many states of a window of so many steps the recipe's `trajectory` allows.

    The allowance is per rank. Where the ranks cannot keep all states whole in
    memory, each keeps its share of every one, and there is room for more.

    Raises:
        RecipeError: there is room for none.
    """
    trajectory, size = job.recipe.trajectory, state.nbytes()
    sharded = job.ranks.size > 1 and _count(trajectory.snapshots, size) < steps
    if sharded:
        size = shard_bytes(state, job.ranks)
    memory, gradients = _room(trajectory.snapshots, size, state.theta.nbytes, steps)
    _refuse_none(memory, "snapshots", trajectory.snapshots, size)
    if trajectory.disk is None:
        return Room(memory, gradients, None, sharded)
    files = _count(trajectory.disk, size + HEADER)
    _refuse_none(files, "disk", trajectory.disk, size + HEADER)
    return Room(memory, gradients, Disk(files, job.scratch), sharded)


def _count(budget: int | str, size: int) -> int:
    """How many states of `size` bytes a budget holds: a number of states, or bytes."""
    return budget if isinstance(budget, int) else memory_bytes(budget) // size


def _room(budget: int | str, size: int, gradient: int, steps: int) -> tuple[int, int]:
    """How many states of a window of so many steps a budget holds, and gradients beside them.

    A budget that is a number of states holds the gradient of each besides.
    """
    memory = _count(budget, size)
    if isinstance(budget, int):
        return memory, budget
    if memory >= steps:
        return memory, min(steps, (memory_bytes(budget) - steps * size) // gradient)
    pairs = memory_bytes(budget) // (size + gradient)
    return max(pairs, min(memory, 1)), pairs


def _refuse_none(count: int, key: str, budget: int | str, size: int) -> None:
    if count < 1:
        raise RecipeError(
            f"trajectory.{key}: {budget} holds no training state; one takes {size / 2**20:.1f} MiB."
        )
