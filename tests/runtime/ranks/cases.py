"""Scored runs that one process and several go through alike, by name."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from curate.datasets import TokenExamples
from curate.datasets.tokens import Encoded
from curate.influence import Probing, Scoring, Target, score_window
from curate.models import FlatModel, LabelsObjective, save_activations
from curate.rules import SGD, AdamW, Rule
from curate.runtime.ranks import Ranks
from curate.selection.budget import Budget
from curate.selection.driver import Selector
from curate.selection.judge import Judge
from curate.selection.policies import LookAhead
from curate.trajectory import Disk, Task, record
from tests import tiny, words

Results = dict[str, Tensor]
T = 4
SHARDED: dict[str, Any] = {"snapshots": 2, "sharded": True}


def rule(
    ranks: Ranks,
    *,
    name: str,
    dtype: torch.dtype = torch.float64,
    size: int = 7,
    clip: float | None = 0.3,
    micro: int = 4,
    dropout: float = 0.0,
    disk: int = 0,
    scoring: Scoring = Scoring(),  # noqa: B008
    **recording: Any,
) -> Results:
    """A window of T steps by a rule with two groups; batches that two ranks cannot halve."""
    task = tiny.task(grouped=True, dtype=dtype, dropout=dropout)
    grouped, lrs = tiny.rule_for(name, task.model.group_shapes, clip)
    task, steps = replace(task, ranks=ranks), tiny.steps(T, lrs, size, micro)
    options = {"snapshots": T, "disk": Disk(disk) if disk else None} | recording
    run = record(task, grouped, tiny.start(task, grouped), steps, **options)
    scores = score_window(
        task, grouped, run, tiny.targets(dtype), scoring=scoring, probing=Probing(2, 0)
    )
    return {
        "influences": torch.cat(scores.influences, dim=1),
        "derivatives": torch.cat(scores.derivatives, dim=1),
        "sizes": torch.cat(scores.sizes),
        "losses": torch.cat(run.losses),
        "target losses": scores.target_losses,
        "final": torch.cat(run.final.tensors()),
        "probes": torch.tensor([[p.linear, p.exact, p.actual] for p in scores.probes]),
    }


def selection(
    ranks: Ranks, *, horizon: int, dtype: torch.dtype, snapshots: int = T, sharded: bool = False
) -> Results:
    """A whole selection: windows, rounds, quotas of what is committed, probes."""
    task = replace(tiny.task(dtype=dtype), ranks=ranks)
    adamw, lrs = tiny.rule_for("adamw", clip=0.3)
    judge = Judge(
        task,
        adamw,
        LookAhead(2),
        tiny.targets(dtype),
        snapshots=snapshots,
        sharded=sharded,
        gradients=2,
    )
    steps = [step.reweight(torch.ones(5)) for step in tiny.steps(T, lrs, size=5)]
    steps[-1] = steps[-1].keep(torch.tensor([0]))  # one row, for more ranks than that
    selector = Selector(judge, Budget(fraction=0.6), horizon, probing=0.5)
    scores = selector.run(tiny.start(task, adamw), steps)
    kept = selector.budget.choose(scores.score).kept
    assert scores.influences is not None
    assert scores.errors is not None
    seen = scores.seen > 0
    return {
        "influences": torch.from_numpy(scores.influences[:, seen]),
        "errors": torch.from_numpy(scores.errors[seen]),
        "kept": torch.from_numpy(kept).double(),
    }


class Words(nn.Module):
    """Each word predicts the next from the mean of those before it."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.words, self.out = nn.Embedding(11, 4), nn.Linear(4, 11)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        seen = (self.words(input_ids) * attention_mask[..., None]).cumsum(dim=1)
        return SimpleNamespace(logits=self.out(seen / attention_mask.cumsum(1)[..., None]))


def texts(count: int, seed: int) -> TokenExamples:
    """Texts of 3 to 12 tokens, one in four of which is not learned."""
    generator = torch.Generator().manual_seed(seed)
    encoded = []
    for _ in range(count):
        length = int(torch.randint(3, 13, (), generator=generator))
        ids = torch.randint(1, 11, (length,), generator=generator)
        encoded.append(Encoded(ids.tolist(), (ids % 4 != 0).tolist()))
    return TokenExamples.gather(encoded, None, pad=0)


def text(
    ranks: Ranks, *, dtype: torch.dtype, jump_bytes: int | None = None, micro: int = 0
) -> Results:
    """Padded rows and a mean over tokens, which no rank can take over its own rows."""
    model = FlatModel(Words(), dtype=dtype)
    task = Task(model, LabelsObjective(shifts=True), texts(24, 1), ranks)
    adamw, steps = AdamW(), tiny.steps(T, (0.05,), 5, micro)
    run = record(task, adamw, tiny.start(task, adamw), steps, **SHARDED)
    targets = [Target(name, texts(7, seed)) for name, seed in (("a", 2), ("b", 3))]
    scores = score_window(task, adamw, run, targets, scoring=Scoring(jump_bytes=jump_bytes))
    return {
        "influences": torch.cat(scores.influences, dim=1),
        "sizes": torch.cat(scores.sizes),
        "target losses": scores.target_losses,
    }


def gpt(
    ranks: Ranks,
    *,
    dtype: torch.dtype,
    autocast: torch.dtype | None = None,
    checkpointed: bool = False,
    rule: Rule = AdamW(eps=1e-4),  # noqa: B008
    **recording: Any,
) -> Results:
    """A transformer with torch's attention, checkpointed as transformers does it."""
    module = words.gpt2(vocabulary=11)
    module.config.use_cache = False
    if checkpointed:
        save_activations(module)
    model = FlatModel(module, dtype=dtype, autocast=autocast)
    task = Task(model, LabelsObjective(shifts=True), texts(24, 1), ranks)
    steps = tiny.steps(T, (0.005,), 5)
    run = record(task, rule, tiny.start(task, rule), steps, **{"snapshots": T} | recording)
    scores = score_window(task, rule, run, [Target("a", texts(7, 2))])
    return {
        "influences": torch.cat(scores.influences, dim=1),
        "target losses": scores.target_losses,
    }


WIDE, NARROW = torch.float64, torch.float32
ADAMW = partial(rule, name="adamw")
JUMP = Scoring(jump_bytes=30_000)
KINDS = {type(made): name for name, made in tiny.RULES.items()}
"""The last of each kind of rule: what ranks share of a rule is its state, whatever its settings."""
CASES: dict[str, Callable[[Ranks], Results]] = {
    name: partial(rule, name=name, **SHARDED) for name in KINDS.values()
}
CASES |= {
    "whole": partial(ADAMW, size=8),
    "gradients kept": partial(ADAMW, micro=0, gradients=T, **SHARDED),
    "some gradients kept": partial(ADAMW, micro=0, gradients=2),
    "batches of one": partial(rule, name="sgd-momentum", clip=None, size=1, **SHARDED),
    "jump": partial(ADAMW, scoring=JUMP, **SHARDED),
    "jump, fixed": partial(ADAMW, scoring=Scoring("fixed", 2**30), micro=0, size=2),
    "on disk": partial(ADAMW, snapshots=1, disk=2, sharded=True),
    "whole on disk": partial(ADAMW, snapshots=1, disk=2),
    "dropout by micro-batch": partial(ADAMW, dropout=0.4, size=8),
    "K = 1": partial(selection, horizon=1, dtype=WIDE),
    "K = 3": partial(selection, horizon=3, dtype=WIDE, **SHARDED),
    "K = T": partial(selection, horizon=T, dtype=WIDE, **SHARDED),
    "text": partial(text, dtype=WIDE),
    "text, jump": partial(text, dtype=WIDE, jump_bytes=2**20),
    "text, micro-batches": partial(text, dtype=WIDE, micro=2),
    "gpt": partial(gpt, dtype=WIDE, gradients=2, **SHARDED),
    "gpt, checkpointed": partial(gpt, dtype=WIDE, checkpointed=True, **SHARDED),
}
CASES |= {
    f"{name}, float32": case
    for name, case in {
        "whole": partial(ADAMW, dtype=NARROW),
        "sharded": partial(ADAMW, dtype=NARROW, **SHARDED),
        "muon": partial(rule, name="muon", dtype=NARROW, **SHARDED),
        "gradients kept": partial(ADAMW, dtype=NARROW, micro=0, gradients=T),
        "jump": partial(ADAMW, dtype=NARROW, scoring=JUMP, **SHARDED),
        "K = 1": partial(selection, horizon=1, dtype=NARROW),
        "K = 3": partial(selection, horizon=3, dtype=NARROW),
        "K = T": partial(selection, horizon=T, dtype=NARROW, **SHARDED),
        "text": partial(text, dtype=NARROW),
        "gpt": partial(gpt, dtype=NARROW, checkpointed=True, **SHARDED),
    }.items()
}
CASES["gpt, bfloat16"] = partial(  # Adam's first step is all sign, so all rounding
    gpt, dtype=NARROW, autocast=torch.bfloat16, rule=SGD(momentum=0.9)
)
