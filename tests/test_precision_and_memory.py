"""Autocast and activation checkpointing: the same scores, in less of something."""

from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from curate.influence import Scoring, score_window
from curate.jobs import run_select
from curate.prepare import Job, prepare
from curate.ranks import ALONE
from curate.recipe import check_recipe
from curate.recipe.yaml import parse
from curate.trajectory import chunk_gradient, counting, record
from tests import words
from tests.job import curate
from tests.ranks.cases import gpt

CPU = torch.device("cpu")
CHECKPOINTING = "training.checkpointing=true"
LLAMA = "model={pretrained: llama, tokenizer: tiny}"
TWO_TARGETS = "data.validation={near: texts.parquet, same: texts.parquet}"


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GPT-2 with dropout, and a Llama in "llama"."""
    monkeypatch.chdir(tmp_path)
    words.write(tmp_path, dropout=0.2)
    words.llama().save_pretrained(str(tmp_path / "llama"))
    return tmp_path


def job(*overrides: str, dtype: str = "float64") -> Job:
    return prepare(check_recipe(parse(words.RECIPE), [f"training.dtype={dtype}", *overrides]), CPU)


def influences(prepared: Job, scoring: Scoring, steps: int = 3) -> tuple[Tensor, Tensor]:
    """Of the first steps, shape (Q, n), and where training ended."""
    task, rule, state = prepared.start(0)
    recording = record(task, rule, state, prepared.steps(0)[:steps], snapshots=9)
    scores = score_window(task, rule, recording, prepared.data.targets, scoring=scoring)
    return torch.cat(scores.influences, dim=1), recording.final.theta


@pytest.mark.parametrize(
    ("overrides", "scoring"),
    [
        ((), Scoring()),
        ((TWO_TARGETS,), Scoring()),
        (("training.micro_batch=3",), Scoring()),
        ((), Scoring(curvature="ggn")),
        ((), Scoring(curvature="none")),
        (("model.lora={rank: 2}",), Scoring()),
        ((LLAMA,), Scoring()),
        ((LLAMA, TWO_TARGETS), Scoring()),
    ],
    ids=["gpt2", "two targets", "micro-batches", "ggn", "none", "lora", "llama", "llama, two"],
)
def test_checkpointing_changes_no_score(
    there: Path, overrides: tuple[str, ...], scoring: Scoring
) -> None:
    plain, end = influences(job(*overrides), scoring)
    again, same_end = influences(job(*overrides, CHECKPOINTING), scoring)
    assert (same_end - end).norm() <= 1e-10 * end.norm()
    # transformers normalises in float32 whatever the model's precision
    assert (again - plain).norm() <= 1e-6 * plain.norm()


def test_checkpointing_with_the_exact_jump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Example by example nothing is checkpointed, so dropout falls the same way."""
    monkeypatch.chdir(tmp_path)
    words.write(tmp_path)
    scoring = Scoring(jump_bytes=2**30)
    plain, again = (influences(job(*extra), scoring)[0] for extra in ((), (CHECKPOINTING,)))
    torch.testing.assert_close(again, plain, rtol=1e-9, atol=1e-12)


def test_checkpointing_of_attention_that_torch_fuses() -> None:
    """Layers that are run again need the backend that they ran with."""
    plain, again = (
        gpt(ALONE, dtype=torch.float64, checkpointed=own)["influences"] for own in (False, True)
    )
    assert (again - plain).norm() <= 1e-10 * plain.norm()


def test_checkpointing_holds_the_ends_of_layers(there: Path) -> None:
    """What autograd still holds after a gradient that can be differentiated, per layer."""

    def held(*overrides: str) -> int:
        prepared = job(*overrides)
        task, _, state = prepared.start(0)
        step = prepared.steps(0)[0]
        with counting(state.theta):
            part = chunk_gradient(task, state.theta, step, step.chunks()[0], differentiable=True)
        return sum(_reachable(part.total).values())

    assert held(CHECKPOINTING) < 0.5 * held()


def test_checkpointing_needs_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path(__file__).parent.parent / "recipes/digits.yaml"
    out = str(tmp_path / "out")
    code = curate(str(recipe), "--out", out, "--set", CHECKPOINTING)
    assert code == 2
    assert "training.checkpointing: the model has no nn.ModuleList" in capsys.readouterr().err


@pytest.mark.parametrize("scoring", [Scoring(jump_bytes=2**30), Scoring()], ids=["jump", "linear"])
def test_autocast(there: Path, scoring: Scoring) -> None:
    """Passes in bfloat16, state in float32: order and size as in float32.

    Without dropout, which falls otherwise in another precision. The linear score divides by
    gradients that are nearly 0 unless eps is well above them, and would be noise.
    """
    settings = [LLAMA, "training.optimizer.eps=1e-4"]
    full, _ = influences(job(*settings, dtype="float32"), scoring, steps=8)
    half, end = influences(
        job("training.autocast=bfloat16", *settings, dtype="float32"), scoring, steps=8
    )
    assert end.dtype == torch.float32
    assert not torch.equal(full, half)
    assert spearmanr(full[0], half[0]).statistic > 0.98
    assert (half - full).norm() < 0.2 * full.norm()


def test_autocast_in_a_whole_run(there: Path) -> None:
    overrides = ["training.autocast=bfloat16", "selection.jump=exact", CHECKPOINTING]
    recipe = check_recipe(parse(words.RECIPE), overrides)
    summary = run_select(recipe, there / "out")
    assert summary["kept"] > 0


def test_autocast_is_for_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words.write(tmp_path)
    code = curate(
        "text.yaml", "--set", "training.autocast=bfloat16",
        "--set", "training.dtype=float64",
    )  # fmt: skip
    assert code == 2
    assert "training.autocast: is for dtype float32" in capsys.readouterr().err


def _reachable(tensor: Tensor) -> dict[int, int]:
    """Bytes of every storage that the graph of a tensor saves, by address."""
    sizes: dict[int, int] = {}
    seen, todo = set(), [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for name in dir(node):
            if name.startswith("_saved_") or name == "saved_tensors":
                value = getattr(node, name)
                for saved in value if isinstance(value, tuple) else (value,):
                    if isinstance(saved, Tensor):
                        sizes[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        todo += [parent for parent, _ in node.next_functions]
    return sizes
