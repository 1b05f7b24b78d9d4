"""Closed forms against torch's own functions, in value and in both derivatives."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional as F

from curate.models import curves
from curate.models.curves import bend, with_slope
from curate.models.fused import Activation, fuse_layers
from curate.models.fused_loss import cross_entropy
from curate.models.fused_norm import fused_norm

TORCHS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "silu": F.silu,
}


def logits_and_labels() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    logits = 3 * torch.randn(6, 5, dtype=torch.float64)
    return logits.requires_grad_(), torch.tensor([0, 4, -100, 2, 2, -100])


@pytest.mark.parametrize("kind", TORCHS)
def test_activations(kind: str) -> None:
    x = torch.linspace(-6, 6, 25, dtype=torch.float64, requires_grad=True)
    ours, theirs = Activation(kind), TORCHS[kind]
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-14, atol=0)
    assert torch.autograd.gradcheck(ours, x)
    assert torch.autograd.gradgradcheck(ours, x)


@pytest.mark.parametrize("kind", TORCHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_in_blocks(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the blocks, and of any shape; of half precision, derivatives stay in single."""
    x = torch.linspace(-6, 6, 3 * 35).view(35, 3).T.to(dtype)
    y, slope = with_slope(kind, x.float())
    expected = (y.to(dtype), slope, bend(kind, x.float()))
    monkeypatch.setattr(curves, "BLOCK", 8)
    found = (*with_slope(kind, x), bend(kind, x))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert bend(kind, x[:0]).shape == (0, 35)


@pytest.mark.parametrize("kind", TORCHS)
def test_activations_are_the_same_bits_with_and_without_gradients(kind: str) -> None:
    """A checkpointed layer is first run without, and then again with them."""
    x = torch.randn(1000)
    with torch.no_grad():
        without = Activation(kind)(x)
    assert torch.equal(Activation(kind)(x.requires_grad_()), without)
    torch.testing.assert_close(without, TORCHS[kind](x.detach()), rtol=1e-6, atol=1e-6)


def test_a_third_derivative_of_an_activation_is_refused() -> None:
    x = torch.randn(3, requires_grad=True)
    y = Activation("gelu")(x).sum()
    for _ in range(2):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="backward"):
        torch.autograd.grad(y.sum(), x)


def test_cross_entropy() -> None:
    logits, labels = logits_and_labels()
    expected = F.cross_entropy(logits, labels, reduction="none", ignore_index=-100)
    torch.testing.assert_close(cross_entropy(logits, labels), expected, rtol=1e-14, atol=1e-15)
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, labels), logits)
    assert torch.autograd.gradgradcheck(lambda z: cross_entropy(z, labels), logits)
    huge = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = cross_entropy(huge, torch.tensor([1]))
    assert loss.item() == 2e4
    (found,) = torch.autograd.grad(loss.sum(), huge)
    assert found.tolist() == [[1, -1]]


def test_layer_norm() -> None:
    torch.manual_seed(0)
    plain = nn.LayerNorm(5, eps=0.1).double()
    with torch.no_grad():
        plain.weight.copy_(torch.randn(5))
        plain.bias.copy_(torch.randn(5))
    fused = fused_norm(plain)
    assert fused is not None
    assert fused.weight is plain.weight
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-14, atol=1e-15)

    def applied(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        given = {"weight": weight, "bias": bias}
        found: Tensor = torch.func.functional_call(fused, given, (x,))
        return found

    inputs = (x, plain.weight, plain.bias)
    assert torch.autograd.gradcheck(applied, inputs)
    assert torch.autograd.gradgradcheck(applied, inputs)
    assert fused_norm(nn.LayerNorm((2, 5))) is fused_norm(nn.LayerNorm(5, bias=False)) is None


def test_vectorised() -> None:
    """Example by example, as the exact jump takes them."""
    logits, labels = logits_and_labels()
    batch, targets = logits.detach().view(2, 3, 5), labels.view(2, 3)
    norm = fused_norm(nn.LayerNorm(5, dtype=torch.float64))
    assert norm is not None

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(Activation("gelu_tanh")(norm(z)), y).sum()

    each = vmap(grad(loss))(batch, targets)
    alone = torch.stack([grad(loss)(z, y) for z, y in zip(batch, targets, strict=True)])
    torch.testing.assert_close(each, alone, rtol=1e-14, atol=1e-15)


def test_several_cotangents_at_once() -> None:
    """As several targets are carried through a step."""
    logits, labels = logits_and_labels()
    x = logits.detach().requires_grad_()
    norm = fused_norm(nn.LayerNorm(5, dtype=torch.float64))
    assert norm is not None
    (first,) = torch.autograd.grad(
        cross_entropy(Activation("silu")(norm(x)), labels).sum(), x, create_graph=True
    )
    cotangents = torch.randn(3, 6, 5, dtype=torch.float64)
    (batched,) = torch.autograd.grad(first, x, cotangents, is_grads_batched=True, retain_graph=True)
    for c, found in zip(cotangents, batched, strict=True):
        (one,) = torch.autograd.grad(first, x, c, retain_graph=True)
        torch.testing.assert_close(found, one, rtol=1e-12, atol=1e-14)


def test_layers_are_swapped_for_the_same_function() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Linear(3, 4), nn.GELU(), nn.Sequential(nn.SiLU(), nn.GELU("tanh"), nn.ReLU())
    )
    x = torch.randn(5, 3)
    before = plain(x)
    fused = fuse_layers(plain)
    torch.testing.assert_close(fused(x), before)
    found = [m.kind for m in fused.modules() if isinstance(m, Activation)]
    assert found == ["gelu", "silu", "gelu_tanh"]


def test_under_autocast_as_near_to_single_precision_as_torch() -> None:
    """Norms and activations then see bfloat16 beside parameters in float32."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 8), nn.SiLU()
    )
    x, ways = torch.randn(4, 16), [torch.randn_like(p) for p in plain.parameters()]

    def twice(model: nn.Module, enabled: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model(x).float().square().sum()
        parameters = [*model.parameters()]
        first = torch.autograd.grad(loss, parameters, create_graph=True)
        second = torch.autograd.grad(first, parameters, ways)
        return torch.cat([part.flatten().detach() for part in (*first, *second)])

    exact, torchs = twice(plain, False), twice(plain, True)
    ours = twice(fuse_layers(plain), True)
    assert ours.dtype == torch.float32
    assert (ours - exact).norm() < 1.5 * (torchs - exact).norm() < 0.02 * exact.norm()
