"""Models and tokenizers of transformers: what they say of themselves, and how they are built."""

import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from curate.errors import MissingExtraError, ModelError
from curate.models import (
    FlatModel,
    LabelsObjective,
    build_pretrained,
    load_config,
    load_tokenizer,
    most_tokens,
    pad_id,
    save_activations,
    vocabulary_size,
)
from tests import words
from tests.tiny import bound

ADAPTERS: dict[str, Any] = {"rank": 2, "alpha": 4.0, "target_modules": ["c_attn"]}


def test_padding_is_the_tokenizers_or_the_end_or_nothing(there: Path) -> None:
    config = load_config("tiny")
    assert vocabulary_size(config) == words.VOCABULARY
    plain = words.tokenizer()
    assert pad_id(plain, config) == plain.eos_token_id
    assert pad_id(words.tokenizer(pad_token="!"), config) == plain.convert_tokens_to_ids("!") != 0
    assert pad_id(words.tokenizer(pad_token="<|new|>"), config) == plain.eos_token_id  # too large
    plain.eos_token = None
    assert pad_id(plain, config) == 0


def test_the_longest_text_is_the_models_or_its_tokenizers(there: Path) -> None:
    config, tokenizer = load_config("tiny"), load_tokenizer("tiny")
    assert most_tokens(tokenizer, config) == words.POSITIONS
    tokenizer.model_max_length = 10
    assert most_tokens(tokenizer, config) == 10


def test_padding_does_not_reach_a_classifier_even_where_it_is_token_0(there: Path) -> None:
    module = build_pretrained("tiny", "sequence_classification", outputs=3, pad=0).eval()
    model, objective = FlatModel(module), LabelsObjective(shifts=False)
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 0, 0], [5, 6, 7, 8, 9]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
        "labels": torch.tensor([2, 1]),
    }
    together = objective.losses(bound(model, model.read(), training=False), batch)
    short = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([2])}
    alone = objective.losses(bound(model, model.read(), training=False), short)
    assert torch.allclose(together[:1], alone, atol=1e-6)


def test_it_is_loaded_as_it_was_saved_and_reports_nothing(
    there: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    module = build_pretrained("tiny", "causal_lm", outputs=0, pad=0)
    for name, parameter in words.gpt2().named_parameters():
        assert torch.equal(parameter, module.get_parameter(name))
    build_pretrained("tiny", "sequence_classification", outputs=3, pad=0)  # a head is missing
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_from_scratch_takes_the_architecture_only(there: Path) -> None:
    made: list[nn.Module] = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(build_pretrained("tiny", "causal_lm", outputs=0, pad=0, from_scratch=True))
    first, again, other = (m.get_parameter("transformer.wpe.weight") for m in made)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    made[0].load_state_dict(words.gpt2().state_dict())  # the same layers


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [("peft", ADAPTERS, "lora"), ("transformers", None, "hf")],
)
def test_packages_that_are_missing_are_named_with_their_extra(
    there: Path, monkeypatch: pytest.MonkeyPatch, missing: str, arguments: Any, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=rf"{missing}; .*curate\[{extra}\]"):
        build_pretrained("tiny", "causal_lm", outputs=0, pad=0, lora=arguments)


def test_torn_weights_are_named(there: Path) -> None:
    Path("tiny/model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match=r"model.pretrained: loading tiny raised Safetensor"):
        build_pretrained("tiny", "causal_lm", outputs=0, pad=0)


def test_a_tokenizer_is_not_made_up(there: Path) -> None:
    words.gpt2().save_pretrained("bare")
    with pytest.raises(ModelError, match=r"model.tokenizer: bare: "):
        load_tokenizer("bare")


def test_layers_are_recomputed_and_attention_is_written_out_where_asked(there: Path) -> None:
    plain = build_pretrained("tiny", "causal_lm", outputs=0, pad=0)
    other = build_pretrained(
        "tiny", "causal_lm", outputs=0, pad=0, checkpointing=True, vectorized=True
    )
    assert other.config._attn_implementation == "eager" != plain.config._attn_implementation
    ids = torch.arange(10)[None]
    for module, passes in ((plain, 1), (other, 2)):
        calls: list[None] = []
        attention = module.get_submodule("transformer.h.0.attn")
        attention.register_forward_hook(lambda *_, calls=calls: calls.append(None))
        module.train()(input_ids=ids, labels=ids).loss.backward()
        assert len(calls) == passes
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(other.get_parameter(name).grad, parameter.grad)
    with pytest.raises(ModelError, match=r"training.checkpointing raised AttributeError"):
        save_activations(nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"])
def test_code_of_a_model_is_run_only_if_it_is_trusted(
    there: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files say that their classes are in own.py, which leaves a trace when it is run."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("nobody is to be asked"))
    folder = Path(shutil.copytree("tiny", "own"))
    trace = (there / "trace").absolute()
    (folder / "own.py").write_text(
        f"open({str(trace)!r}, 'w').close()\n"
        "from transformers import GPT2Config as Own, GPT2LMHeadModel as Model\n"
        "class OwnConfig(Own):\n    model_type = 'own'\n"
    )
    values = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Model"}
    values |= {"model_type": "own", "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(values))
    load = {"AutoConfig": load_config, "AutoTokenizer": load_tokenizer}.get(
        name, lambda path: build_pretrained(path, "causal_lm", outputs=0, pad=0, from_scratch=True)
    )
    with suppress(ModelError):  # a tokenizer may be found without
        load("own")
    assert not trace.exists()
    load_config("own", trust=True)
    assert trace.exists()
