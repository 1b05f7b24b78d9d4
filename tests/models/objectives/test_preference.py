"""The loss of preferences, against its formula written out."""

import math
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from curate.errors import ModelError
from curate.models import Preference, log_probabilities


def model() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=12, n_embd=16, n_layer=1, n_head=2, n_positions=8)
    return GPT2LMHeadModel(config).double().eval()


PROMPTS, CHOSEN, REJECTED = [[2, 3], [4]], [[5, 6], [7]], [[8], [9, 10, 11]]


def batch() -> dict[str, torch.Tensor]:
    ids, mask, learned = (torch.zeros(2, 2, 4, dtype=torch.int64) for _ in range(3))
    for i, prompt in enumerate(PROMPTS):
        for side, completion in enumerate((CHOSEN[i], REJECTED[i])):
            text = prompt + completion
            ids[i, side, : len(text)] = torch.tensor(text)
            mask[i, side, : len(text)] = 1
            learned[i, side, len(prompt) : len(text)] = 1
    reference = {"ref_chosen_logps": [-5.0, -2.0], "ref_rejected_logps": [-3.0, -9.0]}
    known = {key: torch.tensor(part, dtype=torch.float64) for key, part in reference.items()}
    return {"input_ids": ids, "attention_mask": mask, "completion_mask": learned, **known}


def log_probability(of: Any, prompt: list[int], completion: list[int]) -> float:
    """Token by token, each in a pass of its own, without padding."""
    total = 0.0
    for k, token in enumerate(completion):
        logits = of(input_ids=torch.tensor([prompt + completion[:k]])).logits[0, -1]
        total += float(logits.log_softmax(0)[token])
    return total


@torch.no_grad()
def test_losses_are_those_of_the_formula() -> None:
    gpt, pairs = model(), batch()
    known = [
        [log_probability(gpt, prompt, side[i]) for side in (CHOSEN, REJECTED)]
        for i, prompt in enumerate(PROMPTS)
    ]
    # in transformers the logits of language models are in float32
    assert torch.allclose(log_probabilities(gpt, pairs), torch.tensor(known).double(), atol=1e-5)
    margins = [(known[0][0] + 5) - (known[0][1] + 3), (known[1][0] + 2) - (known[1][1] + 9)]
    losses = [-math.log(1 / (1 + math.exp(-0.3 * margin))) for margin in margins]
    objective = Preference(beta=0.3)
    assert objective.losses(gpt, pairs).tolist() == pytest.approx(losses, abs=1e-5)
    assert objective.sizes(pairs).tolist() == [1, 1]
    preferred = objective.metrics(gpt, pairs)["preferred"]
    assert preferred.tolist() == [float(margin > 0) for margin in margins]


def test_a_model_without_logits_by_token_is_told() -> None:
    with pytest.raises(ModelError, match="reads logits of shape"):
        Preference().losses(lambda **_: torch.zeros(4), batch())
