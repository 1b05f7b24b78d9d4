"""Models of one kind of layer each, and double backward through them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from curate.datasets import BatchExamples
from curate.influence import Point
from curate.models import FlatModel, FunctionObjective
from curate.trajectory import Step, Task
from tests import tiny

ROWS, WIDE = 6, 4
saving = partial(checkpoint, use_reentrant=False)
linear = partial(nn.Linear, WIDE)


def squared(model: Any, batch: Any) -> Tensor:
    """A loss of every row that bends everywhere."""
    output = model(batch["x"]).reshape(len(batch["x"]), -1)
    return (output.sin() + 0.3 * output.square()).sum(dim=1)


SQUARED = FunctionObjective(squared, "squared")


class FromFunction(nn.Module):
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


class Attentive(nn.Module):
    """Two tokens of two numbers that look at each other."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3)
        self.up = nn.Linear(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.up(x.view(-1, 1, 2, 2))
        out: Tensor = self.head(F.scaled_dot_product_attention(tokens, tokens, tokens).flatten(1))
        return out


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

    return FromFunction(call, attend=nn.MultiheadAttention(WIDE, 2, batch_first=batch_first))


def encoder(*, batch_first: bool) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(WIDE, 2, 8, dropout=0.0, batch_first=batch_first)


def encoder_time_first() -> nn.Module:
    def call(model: Any, x: Tensor) -> Tensor:
        y: Tensor = model.layers(x.transpose(0, 1)).transpose(0, 1)
        return y

    layer = encoder(batch_first=False)
    return FromFunction(call, layers=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


def conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return nn.Sequential(Conv1D(5, WIDE), nn.GELU(), Conv1D(3, 5))


def lora() -> nn.Module:
    layer = linear(5)
    layer.requires_grad_(False)
    down, up = linear(2, bias=False), nn.Linear(2, 5, bias=False)
    return FromFunction(
        lambda m, x: torch.tanh(m.layer(x) + 2 * m.up(m.down(x))), layer=layer, down=down, up=up
    )


def bias_alone() -> nn.Module:
    layer = nn.Sequential(linear(5), nn.Tanh(), nn.Linear(5, 5))
    layer[0].weight.requires_grad_(False)
    return layer


def frozen_bias() -> nn.Module:
    norm = nn.LayerNorm(WIDE)
    norm.bias.requires_grad_(False)
    return nn.Sequential(linear(WIDE), norm, linear(2))


def lstm() -> nn.Module:
    return FromFunction(lambda m, x: m.body(x)[0], body=nn.LSTM(WIDE, 3, batch_first=True))


def embedded() -> nn.Module:
    def call(m: Any, x: Tensor) -> Tensor:
        h = m.table(x) + m.place(torch.arange(x.shape[1]))
        return F.linear(torch.tanh(m.norm(h)), m.table.weight)  # a tied head

    table, place = nn.Embedding(7, WIDE), nn.Embedding(ROWS, WIDE)
    return FromFunction(call, table=table, place=place, norm=nn.LayerNorm(WIDE))


def by_functions() -> nn.Module:
    parts = {"a": weight(WIDE, 3), "b": weight(3), "c": weight(1)}
    return FromFunction(lambda m, x: torch.tanh(x @ m.a) * m.b + m.c, **parts)


def packed() -> nn.Module:
    def call(m: Any, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(F.linear(x, m.a[:3])), m.a[3:, :3])

    return FromFunction(call, a=weight(5, WIDE))


def einsum() -> nn.Module:
    return FromFunction(lambda m, x: torch.einsum("nti,io->nto", x, m.a).tanh(), a=weight(WIDE, 2))


def weight_norm() -> nn.Module:
    normed: nn.Module = nn.utils.parametrizations.weight_norm(linear(3))
    return normed


def weight_norm_written_out() -> nn.Module:
    def call(m: Any, x: Tensor) -> Tensor:
        return F.linear(x, m.g * m.v / m.v.norm(dim=1, keepdim=True)).tanh()

    return FromFunction(call, g=weight(3, 1), v=weight(3, WIDE))


def added_in_place() -> nn.Module:
    return FromFunction(lambda m, x: (x.clone() + 0).add_(m.a).tanh(), a=weight(WIDE))


def term_of_the_loss() -> nn.Module:
    return FromFunction(lambda m, x: m.a(x) + m.a.weight.square().sum(), a=linear(2))


def checkpointed() -> nn.Module:
    body = nn.Sequential(linear(5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 5))
    return FromFunction(lambda m, x: m.head(saving(m.body, x)), body=body, head=nn.Linear(5, 2))


def checkpointed_reentrant() -> nn.Module:
    def call(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.head(checkpoint(m.body, m.foot(x), use_reentrant=True))
        return y

    body = nn.Sequential(nn.Tanh(), nn.Linear(5, 5))
    return FromFunction(call, foot=linear(5), body=body, head=nn.Linear(5, 2))


def shared() -> nn.Module:
    return FromFunction(lambda m, x: m.a(torch.tanh(m.a(x))), a=linear(WIDE))


def embedding_by_mean() -> nn.Module:
    return FromFunction(lambda m, x: m.table(x).mean(1).tanh(), table=nn.Embedding(7, 3))


def padded_embedding() -> nn.Module:
    return FromFunction(lambda m, x: m.table(x).tanh(), table=nn.Embedding(7, 3, padding_idx=2))


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


def in_a_row(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A model of layers, each made when the model is."""
    return lambda: nn.Sequential(*(make() for make in layers))


conv2d = partial(nn.Conv2d, 2)
two_dimensional_norm = partial(nn.LayerNorm, (3, WIDE))

LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (in_a_row(partial(linear, 9), nn.Tanh, partial(nn.Linear, 9, 2)), flat),
    "linear, of sequences": (in_a_row(partial(linear, 2), nn.GELU), long),
    "only a bias": (bias_alone, flat),
    "Conv1D of transformers": (conv1d, long),
    "conv2d": (in_a_row(partial(conv2d, 3, 3, padding=1, stride=2), nn.Tanh), image),
    "conv2d, grouped": (in_a_row(partial(conv2d, 4, 3, groups=2, bias=False), nn.Tanh), image),
    "conv1d": (in_a_row(partial(nn.Conv1d, 3, 2, 2), nn.Tanh), long),
    "transposed convolution": (partial(nn.ConvTranspose2d, 2, 3, 2), image),
    "embedding, tied, with positions": (embedded, tokens),
    "as many positions as rows": (embedded, as_many_tokens_as_rows),
    "embedding by mean": (embedding_by_mean, tokens),
    "embedding with padding": (padded_embedding, tokens),
    "layer norm": (in_a_row(partial(nn.LayerNorm, WIDE), partial(linear, 2)), flat),
    "layer norm, no bias": (
        in_a_row(partial(nn.LayerNorm, WIDE, bias=False), partial(linear, 2)),
        flat,
    ),
    "layer norm over two dimensions": (in_a_row(two_dimensional_norm, partial(linear, 2)), long),
    "layer norm with a frozen bias": (frozen_bias, flat),
    "RMS norm": (in_a_row(partial(nn.RMSNorm, WIDE), partial(linear, 2)), flat),
    "group norm": (in_a_row(partial(conv2d, 4, 1), partial(nn.GroupNorm, 2, 4)), image),
    "frozen batch norm": (frozen_batch_norm, image),
    "attention": (partial(attention, batch_first=True), long),
    "attention, time first": (partial(attention, batch_first=False), long),
    "LSTM": (lstm, long),
    "attention after a layer": (
        in_a_row(partial(linear, WIDE), partial(attention, batch_first=True)),
        long,
    ),
    "encoder layers, time first": (encoder_time_first, long),
    "encoder layer": (partial(encoder, batch_first=True), long),
    "LoRA": (lora, flat),
    "shared": (shared, flat),
    "by functions": (by_functions, flat),
    "parts of a packed weight": (packed, flat),
    "einsum": (einsum, long),
    "weight norm": (weight_norm, flat),
    "weight norm, written out": (weight_norm_written_out, flat),
    "added in place": (added_in_place, flat),
    "activation in place": (
        in_a_row(partial(linear, 5), partial(nn.ELU, inplace=True), partial(nn.Linear, 5, 2)),
        flat,
    ),
    "a term of the loss": (term_of_the_loss, flat),
    "checkpointed": (checkpointed, flat),
}
"""Name -> a model, and what its rows are."""
REENTRANT = (checkpointed_reentrant, flat)
"""Double backward cannot go through this one."""


def case(name: str, rows: int = ROWS) -> tuple[Point, Tensor]:
    """A step with unequal weights at a model's own parameters, and three directions, (3, P)."""
    torch.manual_seed(3)
    build, draw = REENTRANT if name == "reentrant" else LAYERS[name]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        module, x = build(), draw()[:rows]
    finally:
        torch.set_default_dtype(before)
    model = FlatModel(module.train() if name != "frozen batch norm" else module)
    if not x.is_floating_point():
        module.to(torch.float64)
    task = Task(model, SQUARED, BatchExamples([{"x": x}]))
    weights = torch.linspace(0.5, 1.5, rows, dtype=torch.float64)
    step = Step(torch.arange(rows), weights, (0.1,), seed=1)
    return Point(task, model.read(), step), torch.randn(3, model.size, dtype=torch.float64)


def of_module(make: Callable[[], nn.Module]) -> tuple[Point, Tensor]:
    """The step of the linear case, with another model; and a direction."""
    point, directions = case("linear")
    model = FlatModel(make().double())
    task = Task(model, SQUARED, point.task.examples)
    return Point(task, model.read(), point.step), directions[0][: model.size]


def gradient_of_no_loss(kind: str) -> nn.Module:
    """A model that trains by something that is not the gradient of any loss."""
    layers = nn.Sequential(linear(9), nn.Tanh(), nn.Linear(9, 2))
    if kind == "hook":
        layers[1].register_full_backward_hook(lambda m, inward, outward: (3 * inward[0],))
    else:
        layers[1] = FromFunction(lambda m, x: x + (torch.tanh(2 * x) - x).detach())
    return layers


def oracle(point: Point, direction: Tensor) -> tuple[Tensor, Tensor]:
    """(H a of the step's mean, shape (P,); slopes, shape (n,)), by double backward."""
    task, step = point.task, point.step
    theta = point.theta.clone().requires_grad_()
    weights = step.weights.clone().requires_grad_()
    batch = task.examples.batch(step.rows, task.model.device)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        losses = squared(tiny.bound(task.model, theta, training=True), batch)
        (total,) = torch.autograd.grad((weights * losses).sum(), theta, create_graph=True)
        by_weight, by_theta = torch.autograd.grad(total, [weights, theta], direction)
    return by_theta / step.weights.sum(), by_weight
