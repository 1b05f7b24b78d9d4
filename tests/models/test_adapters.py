"""Adapters from a directory, and what identifies the files of models."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import load_file, save_file

from curate.errors import ModelError, RecipeError
from curate.models import build_pretrained, describe_files, hf, load_config
from curate.recipe import check_recipe
from curate.recipe.load import parse
from tests import words

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    words.write(tmp_path)
    words.write_adapter(tmp_path / "adapter")
    return tmp_path


def configured(folder: Path, **changes: object) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def renamed(folder: Path) -> None:
    """Of a model with other names of layers."""
    weights = load_file(folder / WEIGHTS)
    found = {name.replace("h.0", "h.7"): tensor for name, tensor in weights.items()}
    save_file(found, folder / WEIGHTS)


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
        "adapter: was trained for SEQ_CLS, which objective causal_lm is not.",
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


def test_a_directory_is_what_its_files_hold(there: Path) -> None:
    whole, architecture = describe_files("tiny"), describe_files("tiny", weights=False)
    assert whole != architecture
    (there / "tiny/README.md").write_text("of no consequence")
    (there / "tiny/checkpoint-1").mkdir()
    shutil.copytree("tiny", "elsewhere")
    assert describe_files("elsewhere") == whole
    weights = load_file("tiny/model.safetensors")
    weights["transformer.wpe.weight"][0, 0] += 1e-3
    save_file(weights, "tiny/model.safetensors", {"format": "pt"})
    assert describe_files("tiny") != whole
    assert describe_files("tiny", weights=False) == architecture
    configuration = json.loads(Path("tiny/config.json").read_text())
    Path("tiny/config.json").write_text(json.dumps(configuration | {"layer_norm_epsilon": 1e-3}))
    assert describe_files("tiny", weights=False) != architecture


def test_a_name_on_the_hub_is_its_revision(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = partial(try_to_load_from_cache, cache_dir=str(there))
    monkeypatch.setattr(hf, "try_to_load_from_cache", cached)
    assert describe_files("some/model") == {"revision": "unknown"}
    snapshot = there / "models--some--model/snapshots/0a1b2c"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = there / "models--some--model/refs"
    refs.mkdir()
    (refs / "main").write_text("0a1b2c")
    assert describe_files("some/model") == {"revision": "0a1b2c"}
