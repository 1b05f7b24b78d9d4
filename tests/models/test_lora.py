"""Adapters: new ones change nothing at first, trained ones are those of the model or refused."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from curate.errors import ModelError, RecipeError
from curate.models import build_pretrained, load_config
from curate.recipe import check_recipe
from curate.recipe.load import parse
from tests import words

NEW: dict[str, Any] = {"rank": 2, "alpha": 4.0, "target_modules": ["c_attn"]}
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def configured(folder: Path, **changes: object) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def renamed(folder: Path) -> None:
    """Weights of a model whose layers have other names."""
    weights = load_file(folder / WEIGHTS)
    others = {name.replace("h.0", "h.7"): tensor for name, tensor in weights.items()}
    save_file(others, folder / WEIGHTS)


def partly(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights.pop(min(weights))
    save_file(weights, folder / WEIGHTS)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (shutil.rmtree, "adapter: cannot be loaded: no such directory, and from the Hub: "),
    "hollow": (lambda f: (f / CONFIG).unlink(), "adapter: cannot be loaded: "),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "adapter: "),
    "torn": (lambda f: (f / WEIGHTS).write_bytes(b"torn"), "loading adapter raised Safetensor"),
    "not LoRA": (
        lambda f: (f / CONFIG).write_text(json.dumps({"peft_type": "IA3", "task_type": None})),
        "adapter: is IA3; it must be LORA.",
    ),
    "another task": (
        partial(configured, task_type="SEQ_CLS"),
        "adapter: was trained for SEQ_CLS; the objective needs CAUSAL_LM.",
    ),
    "another rank": (partial(configured, r=3), "adapter: peft raised RuntimeError"),
    "other layers": (partial(configured, target_modules=["nope"]), "adapter: peft raised "),
    "other names": (renamed, "adapter: is not of this model; "),
    "too few": (partly, "adapter: is not of this model; "),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_cannot_go_on_is_refused(there: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(there / "adapter")
    with pytest.raises(ModelError, match=r"^model.adapter: ") as caught:
        build_pretrained("tiny", "causal_lm", outputs=0, pad=0, adapter="adapter")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_adapters_are_no_model(there: Path) -> None:
    with pytest.raises(ModelError, match=r"model.pretrained: adapter: holds adapters; give the "):
        load_config("adapter")


@pytest.mark.parametrize("other", ["lora: {rank: 2}", "from_scratch: true"])
def test_an_adapter_is_taken_as_it_is(other: str) -> None:
    model = f"model={{pretrained: tiny, adapter: adapter, {other}}}"
    with pytest.raises(RecipeError, match="adapter is for trained weights as they are; remove "):
        check_recipe(parse(words.RECIPE), [model])


def test_trained_adapters_are_loaded_as_they_are_and_trained_further(there: Path) -> None:
    adapted = build_pretrained("tiny", "causal_lm", outputs=0, pad=0, adapter="adapter")
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    saved = load_file(Path("adapter", WEIGHTS))
    assert len(trained) == len(saved) > 0
    for name, parameter in trained.items():
        assert torch.equal(parameter, saved[name.replace(".default", "")])


def test_layers_that_are_not_there_are_refused(there: Path) -> None:
    has = r"named nope; it has wte, wpe, c_attn, c_proj, c_fc, lm_head\.$"
    for targets in (["nope"], ["c_attn", "nope"]):  # peft itself leaves out one of several
        with pytest.raises(ModelError, match=rf"^model.lora.target_modules: no layer .* {has}"):
            build_pretrained(
                "tiny", "causal_lm", outputs=0, pad=0, lora=NEW | {"target_modules": targets}
            )


@pytest.mark.parametrize("name", ["c_attn", "attn.c_attn", "transformer.h.0.attn.c_attn"])
def test_a_layer_is_named_by_the_end_of_its_path(there: Path, name: str) -> None:
    lora = NEW | {"target_modules": [name]}
    adapted = build_pretrained("tiny", "causal_lm", outputs=0, pad=0, lora=lora)
    assert any("lora" in n for n, p in adapted.named_parameters() if p.requires_grad)


def test_adapters_leave_the_model_what_it_was_at_first(there: Path) -> None:
    plain = build_pretrained("tiny", "causal_lm", outputs=0, pad=0).eval()
    adapted = build_pretrained("tiny", "causal_lm", outputs=0, pad=0, lora=NEW).eval()
    ids = torch.arange(10)[None]
    assert torch.equal(plain(input_ids=ids).logits, adapted(input_ids=ids).logits)
    trained = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora" in name for name in trained)
    with torch.no_grad():
        for name in trained:
            adapted.get_parameter(name).add_(0.1)
    assert not torch.allclose(plain(input_ids=ids).logits, adapted(input_ids=ids).logits)
