"""What identifies the files of models, and what loading says."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import load_file, save_file

from curate.errors import ModelError
from curate.models import describe_files, hf, load_config, load_tokenizer, quiet


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


def test_a_name_on_the_hub_is_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = partial(try_to_load_from_cache, cache_dir=str(tmp_path))
    monkeypatch.setattr(hf, "try_to_load_from_cache", cached)
    assert describe_files("some/model") == {"revision": "unknown"}
    snapshot = tmp_path / "models--some--model/snapshots/0a1b2c"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "models--some--model/refs"
    refs.mkdir()
    (refs / "main").write_text("0a1b2c")
    assert describe_files("some/model") == {"revision": "0a1b2c"}


def test_what_is_not_there_is_named_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model.tokenizer: a/b/c: no such directory"):
        load_tokenizer("a/b/c")
    with pytest.raises(ModelError, match=r"model.pretrained: nope: cannot be loaded: no such dir"):
        load_config("nope")
    with pytest.raises(ModelError, match=rf"model.pretrained: {tmp_path}: cannot be loaded: \w"):
        load_config(str(tmp_path))


def test_transformers_speaks_again_after_it_was_quiet() -> None:
    log = hf.transformers().utils.logging
    before = log.get_verbosity(), log.is_progress_bar_enabled()
    with quiet():
        assert (log.get_verbosity(), log.is_progress_bar_enabled()) == (log.ERROR, False)
    assert (log.get_verbosity(), log.is_progress_bar_enabled()) == before
