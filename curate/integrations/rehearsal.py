"""Some steps of the loop's own optimizer, tried before it trains; nothing of them stays."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from curate.datasets import Examples
from curate.errors import SimulationError
from curate.integrations.compared import Real, require_update
from curate.integrations.sharded import part_like
from curate.integrations.training import LiveTraining
from curate.models import FlatModel, Objective
from curate.models.hidden import Hidden
from curate.trajectory import Gradient, Step, Task, gradient

STEPS = 3


class Rehearsal:
    """Finds out before a loop's first window what its training does to parameters.

    done: whether it has been. Cost: `rehearse`, and one gradient, which the window can use.
    """

    def __init__(self, training: LiveTraining, objective: Objective) -> None:
        self._training, self._objective = training, objective
        self._uses: dict[str, set[bool]] = {}
        self.done = False

    def saved(self) -> dict[str, Any]:
        """What was found out."""
        idle = self._training.idle
        return {
            "done": self.done,
            "uses": {name: sorted(uses) for name, uses in self._uses.items()},
            "idle": None if idle is None else sorted(idle),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take what was `saved` as found out."""
        self.done, idle = saved["done"], saved["idle"]
        self._uses = {name: {*uses} for name, uses in saved["uses"].items()}
        self._training.idle = None if idle is None else frozenset(idle)

    def take(self, examples: Examples, step: Step) -> Gradient:
        """Parameters that the loss of a step does not use are idle; the others are tried.

        Returns:
            The step's gradient, in the order of what `training` then reads.
        """
        training = self._training
        names = [name for name, p in training.parameters().items() if p.requires_grad]
        model = FlatModel(training.model, [names], autocast=training.half)
        found = gradient(Task(model, self._objective, examples, training.ranks), model.read(), step)
        # a gradient of 0 that was left there has its decay, where none has none
        without = {name for name, p in training.parameters().items() if p.grad is None}
        self.note_use(model)
        unused = {name for name in names if True not in self._uses[name]}
        training.idle = frozenset(unused & without)
        parts = model.unpack(found.mean)
        rehearse(training, {k: None if k in training.idle else x for k, x in parts.items()})
        self.done = True
        return found._replace(mean=training.read()[0].pack(parts))

    def note_use(self, model: FlatModel) -> None:
        """Add what the steps of a window used, in any process.

        Raises:
            SimulationError: some steps use a parameter and some do not: torch skips what has no
                gradient, decay and momentum included, while here all take every step.
        """
        ranks = self._training.ranks
        seen = [[kind in used for used in model.uses.values()] for kind in (True, False)]
        some, never = ranks.sum(torch.tensor(seen, dtype=torch.int64)).tolist()
        for name, used, unused in zip(model.uses, some, never, strict=True):
            kinds = {True: used > 0, False: unused == ranks.size}
            self._uses.setdefault(name, set()).update(k for k in kinds if kinds[k])
            if len(self._uses[name]) > 1:
                raise SimulationError(
                    f"the loss of some batches uses {name} and that of others does not: its "
                    "optimizer state then has a time of its own, which is not modeled; have every "
                    "batch use it, or freeze it (requires_grad_(False))."
                )


def rehearse(training: LiveTraining, gradients: Mapping[str, Tensor | None]) -> None:
    """Have the optimizer step by these gradients, hooks and all, and compare with its rule.

    gradients: of one step, before clipping, by the name of the parameter; None where it has none.
    Cost: three steps of the optimizer, and room for a copy of weights and state meanwhile.

    Raises:
        SimulationError: a parameter moves elsewhere than the rule takes it.
    """
    optimizer = training.optimizer
    with _put_back(training):
        for group in optimizer.param_groups:
            if not float(group["lr"]):  # a warm-up that begins at 0 would show nothing
                group["lr"] = float(group.get("initial_lr", 0.0)) or 1e-3
        before = training.copies()
        for k in range(STEPS):
            model, live = training.read()
            trained = training.parameters()
            raw = {name: gradients.get(name) for name in model.names}
            whole = model.pack(raw)
            clipped = live.clipped(whole)
            for name, part in model.unpack(clipped.clone()).items():
                p = trained[name]
                p.grad = None if raw[name] is None else part_like(part, p)
            expected = live.rule.update(whole, live.state(), live.lrs)
            optimizer.step()
            after = training.copies()
            real = Real(f"a trial of the optimizer, step {k + 1}", before, raw, live.lrs, live.lrs)
            require_update(real, after, model.unpack(expected.theta))
            before = after


@contextmanager
def _put_back(training: LiveTraining) -> Iterator[None]:
    """A block after which weights, gradients, the optimizer and all hooks are as they were."""
    optimizer: Any = training.optimizer
    parameters = {p: p.grad for group in optimizer.param_groups for p in group["params"]}
    hidden = Hidden(*training.hooks())
    weights = {id(p): (p, p.detach().clone()) for p in parameters}
    weights |= {id(x): (x, x.detach().clone()) for _, x in hidden.large if id(x) not in weights}
    groups = [dict(group) for group in optimizer.param_groups]
    state, attributes = dict(optimizer.state), dict(vars(optimizer))
    with hidden.put_back():
        try:
            for p, slots in state.items():
                optimizer.state[p] = {
                    key: slot.clone() if isinstance(slot, Tensor) else slot
                    for key, slot in slots.items()
                }
            yield
        finally:
            vars(optimizer).update(attributes)
            optimizer.state.clear()
            optimizer.state.update(state)
            for group, values in zip(optimizer.param_groups, groups, strict=True):
                group.update(values)
            with torch.no_grad():
                for tensor, value in weights.values():
                    tensor.copy_(value)
            for p, grad in parameters.items():
                p.grad = grad
