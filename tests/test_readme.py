"""The lines that README shows of loops do what it says."""

import re
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from curate import LightningLookAhead, LookAheadMixin
from tests.integrations import trl_tiny
from tests.integrations.loop import data, losses, net, target

ROOT = Path(__file__).parents[1]
README, GUIDE = ((ROOT / name).read_text() for name in ("README.md", "examples/README.md"))


def block(words: str, page: str = README) -> str:
    """The one block of Python with these words in it."""
    (found,) = (b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if words in b)
    return str(found)


def test_a_plain_loop() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    lines = block("LookAheadLoader(batches").replace("    ...\n", "    step(batch)\n")
    sizes = []

    def step(batch: Any) -> None:
        sizes.append(len(batch[0]))
        optimizer.zero_grad()
        losses(model, batch).mean().backward()
        optimizer.step()

    batches = DataLoader(data(192, noise=0.4), batch_size=16)
    names = {"batches": batches, "model": model, "optimizer": optimizer, "losses": losses}
    names |= {"targets": target(), "step": step}
    exec(lines, names)
    assert len(sizes) == 12
    assert names["loader"].reports  # type: ignore[attr-defined]


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        logits = self.body(x)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def test_trainer(tmp_path: Path) -> None:
    names: dict[str, Any] = {"LookAheadMixin": LookAheadMixin, "Trainer": Trainer}
    exec(block("LookAheadTrainer("), names)
    noisy, clean = (
        Dataset.from_dict({"x": x.tolist(), "labels": y.tolist()})
        for x, y in (data(96, noise=0.4).tensors[:2], target())
    )
    args = TrainingArguments(tmp_path, num_train_epochs=1, report_to="none", use_cpu=True)
    trainer = names["LookAheadTrainer"](Classifier(), args, train_dataset=noisy, targets=clean)
    trainer.train()
    assert trainer.state.global_step == 12
    assert trainer.look_ahead_reports


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_trl(tmp_path: Path) -> None:
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
    names: dict[str, Any] = {
        "LookAheadMixin": LookAheadMixin,
        "SFTTrainer": trl.SFTTrainer,
        "DPOTrainer": trl.DPOTrainer,
        "SFTConfig": trl.SFTConfig,
        "DPOConfig": trl.DPOConfig,
        "settings": settings | {"num_train_epochs": 1},
        "tokenizer": trl_tiny.tokenizer(),
        "model": trl_tiny.llama(),
        "lora": LoraConfig(target_modules=["q_proj", "v_proj"]),
        "texts": trl_tiny.texts("text", 64, 0.5),
        "clean_texts": trl_tiny.texts("text", 12),
        "preferences": trl_tiny.texts("preference", 32, 0.5),
        "clean_preferences": trl_tiny.texts("preference", 12),
    }
    exec(block("LookAheadDPO(", GUIDE), names)
    for trainer in (names["sft"], names["dpo"]):
        trainer.train()
        assert trainer.look_ahead_reports


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x: Tensor) -> Any:
        return self.body(x)

    def training_step(self, batch: Any, _: int) -> Tensor:
        return losses(self, batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.02)


@pytest.mark.filterwarnings("ignore")
def test_lightning() -> None:
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    names: dict[str, Any] = {"LightningLookAhead": LightningLookAhead, "trainer": trainer}
    names |= {"module": Module(), "losses": losses, "targets": target()}
    exec(block("trainer.fit("), names | {"loader": DataLoader(data(96), batch_size=16)})
    assert trainer.global_step == 6


def test_data_and_model_in_memory() -> None:
    names: dict[str, Any] = {}
    exec(block("curate.select(", GUIDE), names)
    scores, wrong = names["found"].scores, names["wrong"]
    assert names["found"].verdict.startswith("choosing pays")
    assert wrong[scores["kept"].to_numpy()].mean() < 0.4 * wrong.mean()
    assert len(names["found"].dataset) == scores["kept"].sum()
