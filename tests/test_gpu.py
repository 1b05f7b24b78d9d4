"""On a GPU: the same scores as on a CPU, in the memory that was foretold."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from curate import LookAheadLoader
from curate.influence import score_window
from curate.pipeline.forecast import forecast, measure
from curate.pipeline.job import Job, prepare
from curate.pipeline.select import run_select
from curate.recipe import check_recipe
from curate.recipe.load import parse
from curate.trajectory import record
from tests import words
from tests.integrations.loop import loader, losses, net, target
from tests.integrations.prophecy import foretell
from tests.job import RECIPE, rows

GPU = torch.device("cuda")
LLAMA = "model={pretrained: llama, tokenizer: tiny}"
LORA = "model.lora={rank: 2}"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GPT-2 without dropout (which falls otherwise on a GPU), a Llama, and rows of numbers."""
    monkeypatch.chdir(tmp_path)
    words.write(tmp_path)
    words.llama().save_pretrained(str(tmp_path / "llama"))
    rows().to_parquet("rows.parquet")
    Path("recipe.yaml").write_text(RECIPE)
    return tmp_path


def job(device: torch.device, *overrides: str, text: str = words.RECIPE) -> Job:
    return prepare(check_recipe(parse(text), overrides), device)


def influences(prepared: Job, steps: int = 4) -> Tensor:
    """Of the first steps' candidates on the mean target."""
    task, rule, state = prepared.start(0)
    made = record(task, rule, state, prepared.steps(0)[:steps], snapshots=9, gradients=9)
    return torch.cat(score_window(task, rule, made, prepared.data.targets).overall)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        (RECIPE, ()),
        (RECIPE, ("model={kind: mlp, hidden: [8], activation: relu}",)),
        (words.RECIPE, ()),
        (words.RECIPE, (LORA,)),
        (words.RECIPE, (LLAMA,)),
        (words.RECIPE, (LLAMA, "training.checkpointing=true")),
    ],
    ids=["numbers", "relu", "gpt2", "lora", "llama", "checkpointed"],
)
def test_scores_are_those_of_a_cpu(
    there: Path, text: str, overrides: tuple[str, ...], dtype: str
) -> None:
    """Attention by whatever kernel torch chooses there."""
    given = (f"training.dtype={dtype}", "training.optimizer.eps=1e-6", *overrides)
    cpu, gpu = (influences(job(torch.device(on), *given, text=text)) for on in ("cpu", "cuda"))
    most = 1e-6 if dtype == "float64" else 2e-2
    assert (gpu - cpu).norm() <= most * cpu.norm()


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_scores_of_training_in_less_precision(there: Path, precision: str) -> None:
    given = (LLAMA, "training.optimizer.eps=1e-4")
    full = influences(job(GPU, *given))
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    less = influences(job(GPU, *given, f"training.precision={precision}"))
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
    assert not torch.equal(full, less)
    assert spearmanr(full, less).statistic > 0.97


def test_memory_is_as_foretold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 15 per cent, of a model that is no longer small beside torch's own buffers."""
    monkeypatch.chdir(tmp_path)
    words.write(tmp_path)
    sizes = words.gpt2().config.to_dict() | {"n_embd": 512, "n_layer": 4, "n_head": 8}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(str(tmp_path / "wide"))
    given = (
        "model={pretrained: wide, tokenizer: tiny}", "training.epochs=1", "evaluation=null",
        "selection.horizon=4", "trajectory.snapshots=4",
    )  # fmt: skip
    prepared = job(GPU, *given)
    plan = forecast(prepared)
    expected = plan.summary(measure(plan))["memory"]["total"]
    del plan, prepared
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run_select(check_recipe(parse(words.RECIPE), given), tmp_path / "out", device="cuda")
    assert abs(torch.cuda.max_memory_allocated() / expected - 1) < 0.15


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_in_a_loop_what_is_simulated_is_what_happens(
    monkeypatch: pytest.MonkeyPatch, half: bool
) -> None:
    errors = foretell(monkeypatch)
    model: nn.Module = net(dropout=0.0).to(GPU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    wrapped = LookAheadLoader(loader(), model, optimizer, on_gpu, target(), horizon=4)
    model.train()
    for _ in range(2):
        for batch in wrapped:
            with torch.autocast("cuda", torch.bfloat16, enabled=half):
                loss = on_gpu(model, batch).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    wrapped.settle()
    assert max(errors[1:]) < (5e-3 if half else 1e-4)


def on_gpu(model: Any, batch: Any) -> Tensor:
    return losses(model, [x.to(GPU) for x in batch])


def test_one_process_under_torchrun(there: Path) -> None:
    """NCCL's own world of one."""
    arguments = ["select", "recipe.yaml", "--device", "cuda", "--out", "ranks", "--json"]
    command = ["torch.distributed.run", "--nproc-per-node", "1", "--standalone", "-m", "curate"]
    done = subprocess.run(
        [sys.executable, "-m", *command, *arguments], cwd=there, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kept"] > 0
    run_select(check_recipe(parse(RECIPE), ()), there / "alone", device="cuda")
    one, two = (pl.read_parquet(f"{out}/scores.parquet").sort("row") for out in ("alone", "ranks"))
    assert one["kept"].equals(two["kept"])
