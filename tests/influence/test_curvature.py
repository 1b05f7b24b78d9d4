"""What of the Hessian is followed, against matrices built outright."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from curate.datasets import TensorExamples
from curate.errors import ModelError
from curate.influence import (
    CURVATURES,
    Scoring,
    backward_step,
    final_adjoint,
    score_window,
    target_gradients,
)
from curate.models import Classification, FlatModel, FunctionObjective, Objective, Regression
from curate.rules import Adjoint, Rule, State
from curate.trajectory import Step, Task, gradient, record, replay, seeded_rng
from tests import tiny

LossOfOutputs = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(z: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(z, label, reduction="none")


def squares(z: Tensor, label: Tensor) -> Tensor:
    return (z[:, 0] - label).square()


def regression() -> Task:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 1))
    labels = torch.randn(24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return Task(
        FlatModel(module, dtype=torch.float64), Regression(),
        replace(tiny.examples(), labels=labels),
    )  # fmt: skip


def gauss_newton(task: Task, theta: Tensor, step: Step, loss: LossOfOutputs) -> Tensor:
    """J' H_out J of the step's mean loss, shape (P, P), chunk by chunk."""
    task.model.set_mode(training=True)
    total = torch.zeros(task.model.size, task.model.size, dtype=torch.float64)
    for chunk in step.chunks():
        batch = task.examples.batch(step.rows[chunk], task.model.device)

        def outputs(theta: Tensor, batch: Any = batch) -> Tensor:
            out = functional_call(task.model.module, task.model.unpack(theta), batch["features"])
            assert isinstance(out, Tensor)
            return out.flatten()

        def weighted(z: Tensor, batch: Any = batch, w: Tensor = step.weights[chunk]) -> Tensor:
            return (w * loss(z.view(len(w), -1), batch["label"])).sum()

        with seeded_rng(step.seed + chunk.start, task.model.device):
            z = outputs(theta).detach()
        with seeded_rng(step.seed + chunk.start, task.model.device):
            jacobian = jacrev(outputs)(theta)
        total += jacobian.T @ jacrev(jacrev(weighted))(z) @ jacobian
    return total / step.weights.sum()


def to_gradient(task: Task, rule: Rule, state: State, step: Step, adjoint: Adjoint) -> Tensor:
    """a_g: the derivative of the targets by the step's mean gradient before its scale."""
    mean = gradient(task, state.theta, step).mean

    def after(mean: Tensor) -> tuple[Tensor, ...]:
        return rule.update(mean, state, step.lrs).tensors()

    jacobians = jacrev(after)(mean)
    parts = zip(adjoint, jacobians, strict=True)
    found = sum(a @ j for a, j in parts if a.shape[1])
    assert isinstance(found, Tensor)
    return found * step.scale


def adjoint_of(state: State, count: int = 2) -> Adjoint:
    generator = torch.Generator().manual_seed(4)
    return tuple(
        torch.randn(count, t.numel(), generator=generator, dtype=torch.float64)
        for t in state.tensors()
    )


def bent(task: Task, rule: Rule, state: State, step: Step, adjoint: Adjoint, name: str) -> Tensor:
    """What a curvature adds to the adjoint of theta."""
    with_it, without = (
        backward_step(task, rule, state, step, adjoint, curvature=curvature).adjoint
        for curvature in (name, "none")
    )
    assert with_it is not None
    assert without is not None
    for slot, same in zip(with_it[1:], without[1:], strict=True):
        assert torch.equal(slot, same)
    return with_it[0] - without[0]


@pytest.mark.parametrize(
    ("micro", "cuts"), [(0, ()), (4, ()), (0, (1, 4))], ids=["whole", "micro-batches", "cut"]
)
@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["plain", "dropout"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_ggn_is_the_matrix_of_jacobians(
    name: str, dropout: float, micro: int, cuts: tuple[int, ...]
) -> None:
    task = tiny.task(dropout=dropout)
    rule, lrs = tiny.rule_for(name)
    steps = tiny.steps(3, lrs, micro=micro)
    state = replay(task, rule, tiny.start(task, rule), steps[:2])
    step = replace(steps[2], cuts=cuts, scale=0.7)
    adjoint = adjoint_of(state)
    a_g = to_gradient(task, rule, state, step, adjoint)
    expected = a_g @ gauss_newton(task, state.theta, step, cross_entropy)
    found = bent(task, rule, state, step, adjoint, "ggn")
    assert expected.abs().max() > 1e-3
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_ggn_of_squared_errors_is_the_matrix_of_jacobians() -> None:
    task = regression()
    rule, lrs = tiny.rule_for("sgd-momentum")
    state, step = tiny.start(task, rule), tiny.steps(1, lrs, micro=4)[0]
    adjoint = adjoint_of(state)
    a_g = to_gradient(task, rule, state, step, adjoint)
    expected = a_g @ gauss_newton(task, state.theta, step, squares)
    found = bent(task, rule, state, step, adjoint, "ggn")
    assert expected.abs().max() > 1e-3
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_exact_is_the_hessian() -> None:
    task = tiny.task()
    rule, lrs = tiny.rule_for("adamw")
    state, step = tiny.start(task, rule), tiny.steps(1, lrs)[0]
    adjoint = adjoint_of(state)
    batch = task.examples.batch(step.rows, task.model.device)

    def loss(theta: Tensor) -> Tensor:
        z = functional_call(task.model.module, task.model.unpack(theta), batch["features"])
        return (step.weights * cross_entropy(z, batch["label"])).sum() / step.weights.sum()

    expected = to_gradient(task, rule, state, step, adjoint) @ jacrev(jacrev(loss))(state.theta)
    found = bent(task, rule, state, step, adjoint, "exact")
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_ggn_of_a_nonlinear_model_is_not_the_hessian_and_is_positive() -> None:
    task = tiny.task()
    rule, lrs = tiny.rule_for("sgd")
    state, step = tiny.start(task, rule), tiny.steps(1, lrs)[0]
    adjoint = adjoint_of(state, 5)
    a_g = to_gradient(task, rule, state, step, adjoint)
    found = {name: bent(task, rule, state, step, adjoint, name) for name in ("ggn", "exact")}
    assert (found["ggn"] - found["exact"]).abs().max() > 0.05 * found["exact"].abs().max()
    assert ((a_g * found["ggn"]).sum(1) > 0).all()


@pytest.mark.parametrize("objective", [Classification(), Regression()], ids=["classes", "numbers"])
def test_for_a_linear_model_ggn_is_exact(objective: Objective) -> None:
    numbers = isinstance(objective, Regression)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = FlatModel(nn.Linear(4, 1 if numbers else 3), dtype=torch.float64)
    examples = tiny.examples()
    targets = tiny.targets()
    if numbers:
        examples = in_numbers(examples)
        targets = [replace(t, examples=in_numbers(t.examples)) for t in targets]  # type: ignore[arg-type]
    task = Task(model, objective, examples)
    rule, lrs = tiny.rule_for("adamw")
    steps = tiny.steps(5, lrs)
    found = {}
    for name in CURVATURES:
        made = record(task, rule, tiny.start(task, rule), steps, snapshots=5)
        scored = score_window(task, rule, made, targets, scoring=Scoring(curvature=name))
        found[name] = torch.stack(scored.influences)
    scale = found["exact"].abs().max()
    assert (found["ggn"] - found["exact"]).abs().max() <= 1e-11 * scale
    assert (found["none"] - found["exact"]).abs().max() > 1e-3 * scale


def in_numbers(examples: TensorExamples) -> TensorExamples:
    assert examples.labels is not None
    return replace(examples, labels=examples.labels.double())


@pytest.mark.parametrize("name", CURVATURES)
def test_several_targets_at_once_are_one_by_one(name: str) -> None:
    task = tiny.task(dropout=0.3)
    rule, lrs = tiny.rule_for("adamw")
    state, step = tiny.start(task, rule), tiny.steps(1, lrs, micro=4)[0]
    adjoint = adjoint_of(state, 3)
    together = backward_step(task, rule, state, step, adjoint, curvature=name)
    assert together.adjoint is not None
    for q in range(3):
        own = tuple(part[q : q + 1] for part in adjoint)
        alone = backward_step(task, rule, state, step, own, curvature=name)
        assert alone.adjoint is not None
        torch.testing.assert_close(
            together.derivatives[q], alone.derivatives[0], rtol=1e-11, atol=1e-14
        )
        for both, one in zip(together.adjoint, alone.adjoint, strict=True):
            torch.testing.assert_close(both[q], one[0], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("propagate", [True, False])
def test_derivatives_of_a_single_step_know_no_curvature(propagate: bool) -> None:
    task = tiny.task(dropout=0.3)
    rule, lrs = tiny.rule_for("adamw")
    state, step = tiny.start(task, rule), tiny.steps(1, lrs, micro=4)[0]
    adjoint = adjoint_of(state)
    found = [
        backward_step(
            task, rule, state, step, adjoint, curvature=name, propagate=propagate
        ).derivatives
        for name in CURVATURES
    ]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", CURVATURES)
def test_a_tape_changes_no_score_of_any_curvature(name: str) -> None:
    task = tiny.task(dropout=0.3)
    rule, lrs = tiny.rule_for("adamw")
    steps, found = tiny.steps(4, lrs), []
    for tape_bytes in (0, 2**20):
        made = record(task, rule, tiny.start(task, rule), steps, snapshots=4, tape_bytes=tape_bytes)
        scored = score_window(task, rule, made, tiny.targets(), scoring=Scoring(curvature=name))
        found.append(torch.stack(scored.influences))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("clip", [None, 0.3], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("name", ["sgd-nesterov", "adamw"])
def test_none_is_a_run_whose_gradients_do_not_move_with_theta(
    name: str, clip: float | None
) -> None:
    task = tiny.task(dropout=0.3)
    rule, lrs = tiny.rule_for(name, clip=clip)
    steps = tiny.steps(5, lrs, micro=4)
    recording = record(task, rule, tiny.start(task, rule), steps, snapshots=9)
    _, gradients = target_gradients(
        task.model, task.objective, tiny.targets(), recording.final.theta
    )
    adjoint = final_adjoint(recording.final, gradients)
    for k, state in recording.backwards():
        back = backward_step(task, rule, state, steps[k], adjoint, curvature="none")
        for q, expected in enumerate(unrolled_without_curvature(task, rule, steps, k)):
            found = back.derivatives[q] / (steps[k].weights * back.sizes).sum()
            assert (found - expected).abs().max() <= 1e-10 * max(1, expected.abs().max())
        assert back.adjoint is not None
        adjoint = back.adjoint


def unrolled_without_curvature(task: Task, rule: Rule, steps: list[Step], k: int) -> list[Tensor]:
    """dL/dw of step k, both targets, by autograd; theta is cut off where gradients are taken."""
    state, own = tiny.start(task, rule), steps[k].weights.clone().requires_grad_()
    for t, step in enumerate(steps):
        theta = state.theta.detach().requires_grad_()
        weights, loss = own if t == k else step.weights, torch.zeros((), dtype=torch.float64)
        for chunk in step.chunks():
            batch = task.examples.batch(step.rows[chunk], task.model.device)
            with seeded_rng(step.seed + chunk.start, task.model.device):
                losses = task.objective.losses(task.model.bind(theta, training=True), batch)
            loss = loss + (weights[chunk] * losses).sum()
        loss = loss / step.weights.sum()
        (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
        state = rule.update(grad, state, step.lrs)
    found = []
    for target in tiny.targets():
        batch = target.examples.batch(torch.arange(len(target.examples)), task.model.device)
        final = task.objective.losses(task.model.bind(state.theta, training=False), batch).mean()
        found.append(torch.autograd.grad(final, own, retain_graph=True)[0])
    return found


class Talkative(nn.Module):
    """Puts out more than its logits: what they were made of, too."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.inner, self.form = tiny.module(0.3), form

    def forward(self, x: Tensor) -> Any:
        hidden = self.inner[:3](x)  # type: ignore[index]
        logits = self.inner[3](hidden)  # type: ignore[index]
        if self.form == "twice":
            return {"first": logits, "logits": logits}
        return {"hidden": (hidden,), "logits": logits} if self.form == "dict" else (hidden, logits)


@pytest.mark.parametrize("form", ["dict", "tuple", "twice"])
def test_outputs_that_the_loss_does_not_use_bend_nothing(form: str) -> None:
    """A hidden state put out beside the logits made of it must not count a second time."""
    plain = tiny.task(dropout=0.3)

    def losses(model: Any, batch: Any) -> Tensor:
        found = model(batch["features"])
        return cross_entropy(found[1] if form == "tuple" else found["logits"], batch["label"])

    model = FlatModel(Talkative(form), dtype=torch.float64)
    talking = Task(model, FunctionObjective(losses, "mine"), plain.examples)
    rule, lrs = tiny.rule_for("adamw")
    step, found = tiny.steps(1, lrs)[0], []
    for task in (plain, talking):
        state = tiny.start(task, rule)
        found.append(backward_step(task, rule, state, step, adjoint_of(state), curvature="ggn"))
    torch.testing.assert_close(found[1].derivatives, found[0].derivatives, rtol=1e-10, atol=1e-14)
    assert found[0].adjoint is not None
    assert found[1].adjoint is not None
    torch.testing.assert_close(found[1].adjoint[0], found[0].adjoint[0], rtol=1e-10, atol=1e-13)


class Losses(nn.Module):
    """A model that computes its loss itself."""

    def __init__(self, *, mean: bool) -> None:
        super().__init__()
        self.inner, self.mean = tiny.module(), mean

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        losses = cross_entropy(self.inner(x), label)
        return losses.mean() if self.mean else losses


@pytest.mark.parametrize(
    ("mean", "read"),
    [
        (True, lambda loss, n: loss.expand(n)),
        (True, lambda loss, n: loss.repeat(n)),
        (False, lambda losses, n: losses),
        (False, lambda losses, n: losses.view(-1)),
        (False, lambda losses, n: 2 * losses),
    ],
    ids=["scalar", "scalar-repeated", "per-example", "per-example-viewed", "per-example-scaled"],
)
def test_a_model_that_hands_out_its_loss_is_refused(
    mean: bool, read: Callable[[Tensor, int], Tensor]
) -> None:
    """GGN of a loss that is linear in what the model puts out would be 0, in silence."""

    def losses(model: Any, batch: Any) -> Tensor:
        return read(model(batch["features"], batch["label"]), len(batch["label"]))

    model = FlatModel(Losses(mean=mean), dtype=torch.float64)
    task = Task(model, FunctionObjective(losses, "mine"), tiny.examples())
    rule, lrs = tiny.rule_for("adamw")
    state, step = tiny.start(task, rule), tiny.steps(1, lrs)[0]
    with pytest.raises(ModelError, match="hands out the loss itself; use curvature exact"):
        backward_step(task, rule, state, step, adjoint_of(state), curvature="ggn")
    assert backward_step(task, rule, state, step, adjoint_of(state)).derivatives.isfinite().all()


class Wrapped:
    """An output of a kind that nobody else knows."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Unwrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny.module()

    def forward(self, x: Tensor) -> Any:
        return Wrapped(self.inner(x))


def again(model: Any, batch: Any) -> Tensor:
    fed = torch.cat([model(batch["features"]), batch["features"][:, :1]], dim=1)
    return cross_entropy(model(fed), batch["label"])


def of_wrapped(model: Any, batch: Any) -> Tensor:
    return cross_entropy(model(batch["features"]).logits, batch["label"])


@pytest.mark.parametrize(
    ("module", "losses"),
    [(tiny.module(), again), (Unwrapped(), of_wrapped)],
    ids=["fed-back", "in-an-object"],
)
def test_a_loss_that_theta_reaches_past_the_outputs_is_refused(
    module: nn.Module, losses: Callable[[Any, Any], Tensor]
) -> None:
    task = Task(
        FlatModel(module, dtype=torch.float64), FunctionObjective(losses, "mine"), tiny.examples()
    )
    rule, lrs = tiny.rule_for("adamw")
    state, step = tiny.start(task, rule), tiny.steps(1, lrs)[0]
    with pytest.raises(ModelError, match="of nothing else that is trained; use curvature exact"):
        backward_step(task, rule, state, step, adjoint_of(state), curvature="ggn")


def test_unknown_curvature_and_removal_are_refused() -> None:
    with pytest.raises(ValueError, match=r"curvature must be one of \('exact', 'ggn', 'none'\)"):
        Scoring(curvature="fisher")
    with pytest.raises(ValueError, match="removal must be one of"):
        Scoring(removal="loo")
