"""Slopes and Hessian products from ordinary gradients, layer by layer, against double backward."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from curate.datasets import BatchExamples
from curate.errors import ModelError
from curate.influence import Differences, Slopes
from curate.influence import slopes as slopes_module
from curate.models import FlatModel, FunctionObjective
from curate.trajectory import Step, Task, gradient
from tests import tiny

ROWS, WIDE = 6, 4


def squared(model: Any, batch: Any) -> Tensor:
    """A loss of every row that bends everywhere."""
    output = model(batch["x"]).reshape(len(batch["x"]), -1)
    return (output.sin() + 0.3 * output.square()).sum(dim=1)


class Own(nn.Module):
    """A model made of a function of itself."""

    def __init__(self, call: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self.call = call
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / 2)


def frozen_batch_norm() -> nn.Module:
    norm = nn.BatchNorm2d(3)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return nn.Sequential(nn.Conv2d(2, 3, 3), norm.eval(), nn.Tanh())


def attention(*, batch_first: bool) -> nn.Module:
    def call(model: Any, x: Tensor) -> Tensor:
        y = x if batch_first else x.transpose(0, 1)
        y = model.attend(y, y, y, need_weights=False)[0]
        return y if batch_first else y.transpose(0, 1)

    return Own(call, attend=nn.MultiheadAttention(WIDE, 2, batch_first=batch_first))


def conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return nn.Sequential(Conv1D(5, WIDE), nn.GELU(), Conv1D(3, 5))


def lora() -> nn.Module:
    layer = nn.Linear(WIDE, 5)
    layer.requires_grad_(False)
    return Own(
        lambda m, x: torch.tanh(m.layer(x) + 2 * m.up(m.down(x))),
        layer=layer, down=nn.Linear(WIDE, 2, bias=False), up=nn.Linear(2, 5, bias=False),
    )  # fmt: skip


def bias_alone() -> nn.Module:
    layer = nn.Sequential(nn.Linear(WIDE, 5), nn.Tanh(), nn.Linear(5, 5))
    layer[0].weight.requires_grad_(False)
    return layer


def frozen_bias() -> nn.Module:
    norm = nn.LayerNorm(WIDE)
    norm.bias.requires_grad_(False)
    return nn.Sequential(nn.Linear(WIDE, WIDE), norm, nn.Linear(WIDE, 2))


def flat() -> Tensor:
    return torch.randn(ROWS, WIDE)


def long() -> Tensor:
    return torch.randn(ROWS, 3, WIDE)


def image() -> Tensor:
    return torch.randn(ROWS, 2, 5, 5)


def tokens() -> Tensor:
    return torch.randint(7, (ROWS, 3))


def as_many_tokens_as_rows() -> Tensor:
    return torch.randint(7, (ROWS, ROWS))


def embedded(m: Any, x: Tensor) -> Tensor:
    h = m.table(x) + m.place(torch.arange(x.shape[1]))
    return F.linear(torch.tanh(m.norm(h)), m.table.weight)  # a tied head


EMBEDDED: dict[str, Any] = {
    "table": nn.Embedding(7, WIDE), "place": nn.Embedding(ROWS, WIDE), "norm": nn.LayerNorm(WIDE)
}  # fmt: skip

LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(WIDE, 9), nn.Tanh(), nn.Linear(9, 2)), flat),
    "linear, of sequences": (lambda: nn.Sequential(nn.Linear(WIDE, 2), nn.GELU()), long),
    "only a bias": (bias_alone, flat),
    "Conv1D of transformers": (conv1d, long),
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, stride=2), nn.Tanh()), image),
    "conv2d, grouped, no bias": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2, bias=False), nn.Tanh()), image,
    ),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 2, 2), nn.Tanh()), long),
    "transposed convolution": (lambda: nn.ConvTranspose2d(2, 3, 2), image),
    "embedding, tied, with positions": (lambda: Own(embedded, **EMBEDDED), tokens),
    "as many positions as rows": (lambda: Own(embedded, **EMBEDDED), as_many_tokens_as_rows),
    "embedding by mean": (
        lambda: Own(lambda m, x: m.table(x).mean(1).tanh(), table=nn.Embedding(7, 3)), tokens,
    ),
    "layer norm": (lambda: nn.Sequential(nn.LayerNorm(WIDE), nn.Linear(WIDE, 2)), flat),
    "layer norm without a bias": (
        lambda: nn.Sequential(nn.LayerNorm(WIDE, bias=False), nn.Linear(WIDE, 2)), flat,
    ),
    "layer norm over two dimensions": (
        lambda: nn.Sequential(nn.LayerNorm((3, WIDE)), nn.Linear(WIDE, 2)), long,
    ),
    "layer norm with a frozen bias": (frozen_bias, flat),
    "embedding with padding": (
        lambda: Own(lambda m, x: m.table(x).tanh(), table=nn.Embedding(7, 3, padding_idx=2)),
        tokens,
    ),
    "RMS norm": (lambda: nn.Sequential(nn.RMSNorm(WIDE), nn.Linear(WIDE, 2)), flat),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4)), image),
    "frozen batch norm": (frozen_batch_norm, image),
    "attention": (lambda: attention(batch_first=True), long),
    "attention, time first": (lambda: attention(batch_first=False), long),
    "LSTM": (
        lambda: Own(lambda m, x: m.body(x)[0], body=nn.LSTM(WIDE, 3, batch_first=True)), long,
    ),
    "attention after a layer": (
        lambda: nn.Sequential(nn.Linear(WIDE, WIDE), attention(batch_first=True)), long,
    ),
    "encoder layers, time first": (
        lambda: Own(
            lambda m, x: m.layers(x.transpose(0, 1)).transpose(0, 1),
            layers=nn.TransformerEncoder(
                nn.TransformerEncoderLayer(WIDE, 2, 8, dropout=0.0), 2, enable_nested_tensor=False
            ),
        ), long,
    ),
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(WIDE, 2, 8, dropout=0.0, batch_first=True), long,
    ),
    "LoRA": (lora, flat),
    "shared": (
        lambda: Own(lambda m, x: m.a(torch.tanh(m.a(x))), a=nn.Linear(WIDE, WIDE)), flat,
    ),
    "by functions": (
        lambda: Own(lambda m, x: torch.tanh(x @ m.a) * m.b + m.c, a=weight(WIDE, 3), b=weight(3),
                    c=weight(1)), flat,
    ),
    "parts of a packed weight": (
        lambda: Own(
            lambda m, x: F.linear(torch.tanh(F.linear(x, m.a[:3])), m.a[3:, :3]), a=weight(5, WIDE)
        ), flat,
    ),
    "einsum": (
        lambda: Own(lambda m, x: torch.einsum("nti,io->nto", x, m.a).tanh(), a=weight(WIDE, 2)),
        long,
    ),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDE, 3)), flat,
    ),
    "weight norm, written out": (
        lambda: Own(
            lambda m, x: F.linear(x, m.g * m.v / m.v.norm(dim=1, keepdim=True)).tanh(),
            g=weight(3, 1), v=weight(3, WIDE),
        ), flat,
    ),
    "added in place": (
        lambda: Own(lambda m, x: (x.clone() + 0).add_(m.a).tanh(), a=weight(WIDE)), flat,
    ),
    "activation in place": (
        lambda: nn.Sequential(nn.Linear(WIDE, 5), nn.ELU(inplace=True), nn.Linear(5, 2)), flat,
    ),
    "a term of the loss": (
        lambda: Own(lambda m, x: m.a(x) + m.a.weight.square().sum(), a=nn.Linear(WIDE, 2)), flat,
    ),
    "checkpointed": (
        lambda: Own(
            lambda m, x: m.head(checkpoint(m.body, x, use_reentrant=False)),
            body=nn.Sequential(nn.Linear(WIDE, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 5)),
            head=nn.Linear(5, 2),
        ), flat,
    ),
    "checkpointed, reentrant": (
        lambda: Own(
            lambda m, x: m.head(checkpoint(m.body, m.foot(x), use_reentrant=True)),
            foot=nn.Linear(WIDE, 5), body=nn.Sequential(nn.Tanh(), nn.Linear(5, 5)),
            head=nn.Linear(5, 2),
        ), flat,
    ),
}  # fmt: skip
"""Name -> a model, and what its rows are."""


def case(name: str, rows: int = ROWS) -> tuple[Task, Step, Tensor]:
    """The task, a step with unequal weights, and three directions, shape (3, P)."""
    torch.manual_seed(3)
    build, draw = LAYERS[name]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        module, x = build(), draw()[:rows]
    finally:
        torch.set_default_dtype(before)
    model = FlatModel(module.train() if name != "frozen batch norm" else module)
    if not x.is_floating_point():
        module.to(torch.float64)
    task = Task(model, FunctionObjective(squared, "squared"), BatchExamples([{"x": x}]))
    weights = torch.linspace(0.5, 1.5, rows, dtype=torch.float64)
    step = Step(torch.arange(rows), weights, (0.1,), seed=1)
    directions = torch.randn(3, model.size, dtype=torch.float64)
    return task, step, directions


def oracle(task: Task, step: Step, direction: Tensor) -> tuple[Tensor, Tensor]:
    """(H a of the step's mean, shape (P,); slopes, shape (n,)), by double backward."""
    theta = task.model.read().requires_grad_()
    weights = step.weights.clone().requires_grad_()
    batch = task.examples.batch(step.rows, task.model.device)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        losses = squared(tiny.bound(task.model, theta, training=True), batch)
        (total,) = torch.autograd.grad((weights * losses).sum(), theta, create_graph=True)
        by_weight, by_theta = torch.autograd.grad(total, [weights, theta], direction)
    return by_theta / step.weights.sum(), by_weight


@pytest.mark.parametrize("rows", [ROWS, 1])
@pytest.mark.parametrize("name", LAYERS)
def test_slopes_are_those_of_double_backward_without_a_backward_pass_per_row(
    monkeypatch: pytest.MonkeyPatch, name: str, rows: int
) -> None:
    if name.endswith("reentrant"):
        pytest.skip("double backward cannot go through it; see the test below")
    task, step, directions = case(name, rows)
    monkeypatch.setattr(slopes_module, "_one_by_one", None)
    grad, found = Slopes().take(task, task.model.read(), step, list(directions))
    assert torch.equal(grad.mean, gradient(task, task.model.read(), step).mean)
    for q, direction in enumerate(directions):
        _, expected = oracle(task, step, direction)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(found[q], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_products_are_those_of_double_backward(name: str) -> None:
    if name.endswith("reentrant"):
        pytest.skip("double backward cannot go through it; see the test below")
    if name == "weight norm":
        pytest.skip("torch's own second derivative of _weight_norm is wrong (2.13)")
    task, step, directions = case(name)
    differences, theta = Differences(), task.model.read()
    grad = gradient(task, theta, step)
    for direction in directions:
        bent, slopes, error = differences.products(task, theta, step, grad, [direction])[0]
        expected, expected_slopes = oracle(task, step, direction)
        assert (bent - expected).norm() <= 1e-7 * expected.norm()
        assert (slopes - expected_slopes).norm() <= 1e-7 * expected_slopes.norm()
        assert error < 1e-6


def test_reentrant_checkpointing_gives_what_it_gives_without() -> None:
    task, step, directions = case("checkpointed, reentrant")
    _, found = Slopes().take(task, task.model.read(), step, list(directions))
    module: Any = task.model.module
    module.call = lambda m, x: m.head(m.body(m.foot(x)))
    for q, direction in enumerate(directions):
        torch.testing.assert_close(found[q], oracle(task, step, direction)[1])


class Hidden(torch.autograd.Function):
    """A product that is not seen as a function of torch's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return gradient * w, (gradient * x).sum(0)


@pytest.mark.parametrize("seen_besides", [False, True])
def test_a_use_that_nobody_sees_is_found_by_the_sum(seen_besides: bool) -> None:
    task, step, directions = case("linear")
    more = 1.0 if seen_besides else 0.0
    module = Own(lambda m, x: Hidden.apply(x, m.a).sin() + more * m.a, a=weight(WIDE).double())
    module.a = nn.Parameter(module.a.detach().double())
    if not seen_besides:
        module.call = lambda m, x: Hidden.apply(x, m.a).sin()
    model = FlatModel(module)
    task = Task(model, task.objective, task.examples)
    direction = directions[0][: model.size]
    taker = Slopes()
    with pytest.warns(RuntimeWarning, match="parameter a.*it is used where nobody sees it"):
        _, found = taker.take(task, model.read(), step, [direction])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        _, again = taker.take(task, model.read(), step, [direction])
    torch.testing.assert_close(found, again)
    torch.testing.assert_close(found[0], oracle(task, step, direction)[1])


def test_rows_in_another_order_are_found_by_other_weights() -> None:
    """The sum over rows is right whatever row a share goes to."""
    task, step, directions = case("linear")
    order = torch.tensor([3, 0, 1, 5, 2, 4])

    def shuffled(m: Any, x: Tensor) -> Tensor:
        return m.a(x[order]).sin()[order.argsort()]

    model = FlatModel(Own(shuffled, a=nn.Linear(WIDE, 2).double()))
    task = Task(model, task.objective, task.examples)
    direction = directions[0][: model.size]
    with pytest.warns(RuntimeWarning, match="rows cannot be told apart"):
        _, found = Slopes().take(task, model.read(), step, [direction])
    torch.testing.assert_close(found[0], oracle(task, step, direction)[1])


def test_rows_that_weigh_nothing_have_slopes_too() -> None:
    task, step, directions = case("linear")
    step = step.reweight(step.weights * (torch.arange(ROWS) % 2))
    grad, found = Slopes().take(task, task.model.read(), step, [directions[0]])
    torch.testing.assert_close(found[0], oracle(task, step, directions[0])[1])
    assert torch.equal(grad.mean, gradient(task, task.model.read(), step).mean)


@pytest.mark.parametrize("kind", ["hook", "straight through"])
def test_a_gradient_that_is_none_of_a_loss_is_refused(kind: str) -> None:
    task, step, directions = case("linear")
    layers = nn.Sequential(nn.Linear(WIDE, 9), nn.Tanh(), nn.Linear(9, 2)).double()
    if kind == "hook":
        layers[1].register_full_backward_hook(lambda m, inward, outward: (3 * inward[0],))
    else:
        layers[1] = Own(lambda m, x: x + (torch.tanh(2 * x) - x).detach())
    task = Task(FlatModel(layers), task.objective, task.examples)
    theta = task.model.read()
    with pytest.raises(ModelError, match=r"not the gradient of any loss.*use horizon 1"):
        Differences().products(
            task, theta, step, gradient(task, theta, step), [directions[0][: len(theta)]]
        )
    # slopes are right all the same: they are of the gradient that trains
    _, found = Slopes().take(task, theta, step, [directions[0][: len(theta)]])
    one = step.reweight(torch.eye(ROWS, dtype=torch.float64)[2])
    alone = gradient(task, theta, one).mean @ directions[0][: len(theta)]
    assert float(found[0, 2]) == pytest.approx(float(alone), rel=1e-10)


@pytest.mark.parametrize("end", [RuntimeError, KeyboardInterrupt])
def test_whatever_happens_the_module_is_as_it_was(end: type[BaseException]) -> None:
    task, step, _ = case("linear")
    module, theta = task.model.module, task.model.read()
    for p in module.parameters():
        p.grad = torch.randn_like(p)
    module[1].eval()
    before = [(p, p.data_ptr(), p.detach().clone(), p.grad, p.grad.clone())
              for p in module.parameters()]  # fmt: skip

    def breaks(*_: object) -> None:
        raise end("in the middle")

    hook = module[2].register_forward_hook(breaks)
    with pytest.raises(end):
        gradient(task, theta + 1, step)
    hook.remove()
    for p, place, value, grad, copy in before:
        assert p.data_ptr() == place
        assert torch.equal(p, value)
        assert p.grad is grad
        assert torch.equal(grad, copy)
    assert not module[1].training


def test_memory_under_checkpointing_stays_down() -> None:
    """What slopes need of a checkpointed layer is computed again with it, not held."""
    from curate.trajectory import counting

    wide, layers = 64, 6

    def built(saving: bool) -> tuple[Task, Step]:
        torch.manual_seed(0)
        body = [nn.Sequential(nn.Linear(wide, 4 * wide), nn.Tanh(), nn.Linear(4 * wide, wide))
                for _ in range(layers)]  # fmt: skip

        def call(m: Any, x: Tensor) -> Tensor:
            for layer in m.body:
                x = checkpoint(layer, x, use_reentrant=False) if saving else layer(x)
            return x

        model = FlatModel(Own(call, body=nn.ModuleList(body)))
        examples = BatchExamples([{"x": torch.randn(32, wide)}])
        task = Task(model, FunctionObjective(squared, "squared"), examples)
        return task, Step(torch.arange(32), torch.ones(32), (0.1,), seed=1)

    found = {}
    for saving in (False, True):
        task, step = built(saving)
        theta = task.model.read()
        direction = torch.randn(task.model.size)
        taker = Slopes()
        taker._attributed = True
        with counting(theta, *task.model.held) as sizes:
            slopes = taker.take(task, theta, step, [direction])[1]
        found[saving] = slopes, sum(sizes.values())
    torch.testing.assert_close(found[True][0], found[False][0])
    assert found[True][1] < found[False][1] / 2


@pytest.mark.parametrize(
    "name", ["linear", "conv2d", "attention", "embedding, tied, with positions", "group norm"]
)
def test_single_precision_is_as_near_as_it_says(name: str) -> None:
    """Forward differences, the estimate from the first, which is taken both ways."""
    wide, step, directions = case(name)
    theta = wide.model.read()
    expected = oracle(wide, step, directions[0])
    batch = wide.examples.batches[0]
    x = batch["x"].float() if batch["x"].is_floating_point() else batch["x"]
    model = FlatModel(wide.model.module.float())
    task = Task(model, wide.objective, BatchExamples([{"x": x}]))
    differences, narrow = Differences(), theta.float()
    grad = gradient(task, narrow, step)
    for k in range(3):  # the first is checked, the others go by what it found
        bent, slopes, error = differences.products(
            task, narrow, step, grad, [directions[0].float()]
        )[0]
        off = float((bent - expected[0]).norm() / expected[0].norm())
        assert 0 < off < 5e-3
        assert off < 5 * error + 1e-3 * (k > 0)
        assert (slopes - expected[1]).norm() < 5e-3 * expected[1].norm()


def test_a_course_goes_on_from_what_was_saved() -> None:
    task, step, directions = case("linear")
    theta = task.model.read()
    grad = gradient(task, theta, step)
    whole, again = Differences(), Differences()
    for k, direction in enumerate(directions):
        expected = whole.products(task, theta, step, grad, [direction])[0]
        found = again.products(task, theta, step, grad, [direction])[0]
        assert torch.equal(found.bent, expected.bent), k
        saved, again = again.saved(), Differences()
        again.restore(saved)
