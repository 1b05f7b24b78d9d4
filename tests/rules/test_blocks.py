"""Updates block by block are those of the whole, to the last bit."""

import pytest
import torch

from curate.rules import SGD, Adam, AdamW, Clipped, Grouped, Rule, blocks_of, initial_state, updated
from tests.tiny import RULES, shaped

SIZE = 1000
RULES_TO_TRY: list[Rule] = [
    *(shaped(rule, ((20, 30), (20, 20))) for rule in RULES.values()),
    Clipped(AdamW(), 0.5),
    Grouped([Clipped(Adam(weight_decay=0.1), 0.5), SGD(momentum=0.9), AdamW()], [5, 900, 95]),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rule", RULES_TO_TRY, ids=str)
def test_bits_are_the_same_in_many_blocks(
    rule: Rule, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curate.rules.blocks.CPU_BLOCK", 64)
    torch.manual_seed(0)
    lrs = (0.1,) * (len(rule.rules) if isinstance(rule, Grouped) else 1)
    one = other = initial_state(rule, torch.randn(SIZE, dtype=dtype))
    for _ in range(3):
        grad = torch.randn(SIZE, dtype=dtype).requires_grad_()
        one, other = rule.update(grad.detach(), one, lrs), updated(rule, grad, other, lrs)
        assert one.step == other.step
        assert one.slots.keys() == other.slots.keys()
        for mine, theirs in zip(one.tensors(), other.tensors(), strict=True):
            assert torch.equal(mine, theirs)
            assert not theirs.requires_grad


def test_blocks_cover_a_vector_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.rules.blocks.CPU_BLOCK", 64)
    parts = [*blocks_of(torch.zeros(SIZE))]
    assert len(parts) > 5
    assert torch.equal(torch.cat([torch.arange(SIZE)[part] for part in parts]), torch.arange(SIZE))
