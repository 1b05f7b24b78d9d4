"""A GPT-2 of transformers of any size, untrained and without dropout, and its loss by sequence."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F


def small_gpt(*, layers: int, width: int, heads: int, vocabulary: int, length: int) -> Any:
    """The model (sdpa), initialized by torch's generator."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        vocab_size=vocabulary,
        n_positions=length,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def losses(model: Any, tokens: Tensor) -> Tensor:
    """One mean loss per sequence, shape (n,)."""
    logits = model(input_ids=tokens).logits[:, :-1]
    each = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return each.view(len(tokens), -1).mean(dim=1)
