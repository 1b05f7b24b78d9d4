"""Language models in a recipe: losses and influences against the long way, and whole runs."""

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from datasets import load_from_disk
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from curate.influence import score_window
from curate.models import quiet
from curate.pipeline.forecast import plan_select
from curate.pipeline.job import Job, prepare
from curate.recipe import check_recipe
from curate.recipe.load import parse
from curate.rules import AdamW
from curate.trajectory import Step, counting, gradient, graph_size, record, replay
from tests import tiny, words
from tests.job import curate, sets, verify

CPU = torch.device("cpu")
ADAPTER_WEIGHTS = "adapter/adapter_model.safetensors"
COMPLETION = "data.columns={prompt: prompt, completion: completion}"
LOSS = "selection.policy=loss"


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    words.write(tmp_path)
    return tmp_path


def job(*overrides: str, dtype: str = "float64") -> Job:
    recipe = check_recipe(parse(words.RECIPE), [f"training.dtype={dtype}", *overrides])
    return prepare(recipe, CPU)


def alone(prepared: Job, position: int, part: Any = None) -> tuple[Tensor, Tensor]:
    """One example without padding: its tokens, and which of them are learned, shape (t,)."""
    examples: Any = prepared.data.examples if part is None else part
    span = slice(int(examples.starts[position]), int(examples.starts[position + 1]))
    return examples.tokens[span].long(), examples.learned[span]


def plain_loss(module: Callable[..., Any], ids: Tensor, learned: Tensor) -> tuple[Tensor, int]:
    """Summed loss of one text, token by token, and how many were summed."""
    logits = module(input_ids=ids[None]).logits[0]
    places = [t for t in range(1, len(ids)) if bool(learned[t])]
    before = [t - 1 for t in places]
    return F.cross_entropy(logits[before], ids[places], reduction="sum"), len(places)


@pytest.mark.parametrize("override", ["data.max_length=24", COMPLETION])
def test_losses_are_those_of_texts_alone(there: Path, override: str) -> None:
    prepared = job("data.max_length=64", override)
    task, _, state = prepared.start(0)
    batch = task.examples.batch(torch.arange(12), CPU)
    lengths = batch["attention_mask"].sum(dim=1)
    assert lengths.min() < lengths.max()  # so that something is padded
    with torch.no_grad():
        found = task.objective.losses(tiny.bound(task.model, state.theta, training=False), batch)
        expected = [plain_loss(task.model.module, *alone(prepared, i)) for i in range(12)]
    assert (found - torch.stack([loss for loss, _ in expected])).abs().max() <= 1e-10
    assert task.objective.sizes(batch).tolist() == [count for _, count in expected]


def test_a_classifiers_losses_are_those_of_texts_alone(there: Path) -> None:
    prepared = job("objective=sequence_classification")
    task, _, state = prepared.start(0)
    batch = task.examples.batch(torch.arange(12), CPU)
    assert batch["attention_mask"].sum(dim=1).unique().numel() > 1
    with torch.no_grad():
        found = task.objective.losses(tiny.bound(task.model, state.theta, training=False), batch)
        for i in range(12):
            logits = task.model.module(input_ids=alone(prepared, i)[0][None]).logits
            assert abs(F.cross_entropy(logits, batch["labels"][i : i + 1]) - found[i]) <= 1e-10


def trained(prepared: Job, steps: Sequence[Step], rule: AdamW) -> float:
    """The target's mean loss per token after plain training with torch's own AdamW."""
    task, _, _ = prepared.start(0)
    module, (target,) = deepcopy(task.model.module).train(), prepared.data.targets
    moving = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(moving, eps=rule.eps, weight_decay=0.0)
    for step in steps:
        loss, terms = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for row, weight in zip(step.rows.tolist(), step.weights, strict=True):
            part, count = plain_loss(module, *alone(prepared, row))
            loss, terms = loss + weight * part, terms + weight * count
        optimizer.zero_grad()
        (loss / terms).backward()
        optimizer.param_groups[0]["lr"] = step.lrs[0]
        optimizer.step()
    with torch.no_grad():
        parts = [
            plain_loss(module, *alone(prepared, i, target.examples))
            for i in range(len(target.examples))
        ]
    return float(sum(loss for loss, _ in parts)) / sum(count for _, count in parts)


def test_tied_weights_are_one_parameter(there: Path) -> None:
    task, _, _ = job().start(0)
    module: Any = task.model.module
    assert module.lm_head.weight is module.transformer.wte.weight
    assert "lm_head.weight" not in task.model.names
    assert task.model.size == sum(p.numel() for p in words.gpt2().parameters())


@pytest.mark.parametrize(
    ("micro_batch", "model"),
    [
        (0, "{pretrained: tiny}"),
        (2, "{pretrained: tiny}"),
        (0, "{pretrained: tiny, lora: {rank: 2, target_modules: [c_attn, lm_head]}}"),
        (0, "{pretrained: tiny, adapter: adapter}"),
    ],
    ids=["whole", "micro-batches", "adapters", "trained adapters"],
)
def test_influences_are_finite_differences(there: Path, micro_batch: int, model: str) -> None:
    words.write(there, layers=2)
    words.write_adapter(there / "adapter", layers=2)
    prepared = job(
        COMPLETION, "data.max_length=64", "data.validation.fraction=0.1", f"model={model}"
    )
    task, _, state = prepared.start(0)
    step_size = 1e-4 if "adapter:" in model else 1e-5  # few of those, which move little
    rule, generator = AdamW(eps=1e-4, weight_decay=0.0), torch.Generator().manual_seed(1)
    order = torch.randperm(len(task.examples), generator=generator)
    steps = [
        Step(rows, torch.tensor([1.0, 0.7, 1.3], dtype=torch.float64), (lr,), 0, micro_batch)
        for rows, lr in zip(order[:9].split(3), (3e-3, 2e-3, 1e-3), strict=True)
    ]
    recording = record(task, rule, state, steps, snapshots=9)
    scores = score_window(task, rule, recording, prepared.data.targets)
    assert abs(trained(prepared, steps, rule) - float(scores.target_losses[0])) <= 1e-10
    for t, step in enumerate(steps):
        terms = step.weights * scores.sizes[t]
        # of the weighted mean over tokens, from what leaving out does to it (`influence`)
        found = -scores.influences[t][0] * (terms.sum() - terms) / (step.weights * terms.sum())
        expected = []
        for i in range(3):
            ends = []
            for change in (step_size, -step_size):
                moved = step.weights.clone()
                moved[i] += change
                ends.append(
                    trained(prepared, [*steps[:t], step.reweight(moved), *steps[t + 1 :]], rule)
                )
            expected.append((ends[0] - ends[1]) / (2 * step_size))
        difference = (found - torch.tensor(expected, dtype=torch.float64)).abs().max()
        rounding = 2e-15 / step_size  # of a loss of six, by two steps
        assert difference <= 1e-6 * max(map(abs, expected)) + rounding, (t, found, expected)


def test_dropout_falls_the_same_way_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words.write(tmp_path, dropout=0.2)
    prepared = job()
    task, rule, state = prepared.start(0)
    steps = prepared.steps(0)[:4]
    one, other = (replay(task, rule, state, steps).theta for _ in range(2))
    assert torch.equal(one, other)
    plain = replay(task, rule, state, [replace(step, seed=0) for step in steps]).theta
    assert not torch.equal(one, plain)  # so that something was dropped


def test_a_model_from_scratch_depends_on_the_seed_alone(there: Path) -> None:
    prepared = job("model.from_scratch=true")
    first, again, other = (prepared.start(seed)[2].theta for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    loaded, same = (job().start(seed)[2].theta for seed in (1, 2))
    assert torch.equal(loaded, same)


def test_only_adapters_are_trained(there: Path) -> None:
    task, _, state = job("model.lora={rank: 2, alpha: 4, target_modules: [c_attn]}").start(0)
    assert all("lora_" in name for name in task.model.names)
    assert state.theta.numel() == 32 * 2 + 2 * 96
    task, _, _ = job("model.lora={rank: 2}", "objective=sequence_classification").start(0)
    assert [name for name in task.model.names if "lora_" not in name] == [
        "base_model.model.score.modules_to_save.default.weight"
    ]


def test_a_trained_adapter_goes_on_from_where_it_was(there: Path) -> None:
    words.write_adapter(there / "adapter")
    task, _, state = job("model.adapter=adapter").start(0)
    saved = load_file(ADAPTER_WEIGHTS)
    assert state.theta.numel() == sum(tensor.numel() for tensor in saved.values())
    module: Any = task.model.module.eval()
    with quiet():
        expected = PeftModel.from_pretrained(words.gpt2().double(), "adapter").eval()
    ids = torch.arange(10)[None]
    with torch.no_grad():
        difference = module(input_ids=ids).logits - expected(input_ids=ids).logits
    assert difference.abs().max() <= 1e-12


def test_what_a_model_was_read_from_is_on_record(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other weights under the same name are other scores."""
    words.write_adapter(there / "adapter")
    settings = sets("model={pretrained: tiny, tokenizer: tiny, adapter: adapter}")
    assert curate("text.yaml", "--out", "out", *settings) == 0
    made = json.loads(Path("out/provenance.json").read_text())["sources"]
    assert [*made] == ["texts.parquet", "model tiny", "tokenizer tiny", "adapter adapter"]
    card = Path("out/README.md").read_text()
    assert f"| model tiny |  | {made['model tiny']['fingerprint']} |" in card
    assert verify("out", "--examples", "2", "--out", "same") == 0
    weights = load_file(ADAPTER_WEIGHTS)
    save_file({name: 2 * tensor for name, tensor in weights.items()}, ADAPTER_WEIGHTS)
    capsys.readouterr()
    assert verify("out", "--examples", "2", "--out", "other") == 2
    assert "out: adapter adapter has changed since it was scored; " in capsys.readouterr().err
    assert curate("text.yaml", "--out", "out", "--resume", *settings) == 2
    assert "adapter adapter has changed" in capsys.readouterr().err


WHOLE_RUNS = [
    ["model.lora={rank: 2}", COMPLETION, "data.max_length=64"],
    ["objective=sequence_classification", "data.label_noise={fraction: 0.2}"],
    ["model.from_scratch=true", "selection.group_by=label"],
    [LOSS],
    ["training.micro_batch=3", "training.clip_norm=1.0"],
    ["objective=sequence_classification", "model={pretrained: tiny, lora: {rank: 2}}"],
    ["data.validation={near: texts.parquet, same: texts.parquet}", "selection.judge=true"],
    ["model.pretrained=llama", "model.tokenizer=tiny", "selection.jump=exact"],
    ["model.pretrained=bert", "model.tokenizer=tiny", "objective=sequence_classification"],
]


@pytest.mark.parametrize("overrides", WHOLE_RUNS, ids=" ".join)
def test_select_from_text_to_dataset(there: Path, overrides: list[str]) -> None:
    words.llama().save_pretrained("llama")
    words.bert().save_pretrained("bert")
    assert curate("text.yaml", "--out", "out", *sets(*overrides)) == 0
    kept = load_from_disk("out")["train"]
    assert set(kept.column_names) >= set(words.texts(1).column_names)
    scores = pl.read_parquet("out/scores.parquet")
    rows = scores.sort("row").filter("kept")["row"].to_list()
    assert kept["note"][:] == [f"row {row}" for row in rows]
    assert len(rows) == scores.height // 2
    assert scores["score"].is_finite().all()
    if overrides in WHOLE_RUNS[:3]:
        assert curate("out/recipe.yaml", "--out", "again") == 0
        assert scores.equals(pl.read_parquet("again/scores.parquet"))


def test_conversations_are_selected(there: Path) -> None:
    tokenizer = words.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained("chatty")
    settings = ["data.columns={messages: messages}", "model.tokenizer=chatty", LOSS]
    assert curate("text.yaml", "--out", "out", *sets(*settings)) == 0
    assert len(load_from_disk("out")["train"]) == 18


def test_what_is_truncated_is_counted(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert curate("text.yaml", "--out", "out", *sets(LOSS)) == 0
    said = capsys.readouterr().out
    counts = json.loads(Path("out/provenance.json").read_text())["truncated"]
    lengths = [len(words.tokenizer()(row)["input_ids"]) + 1 for row in words.passages(60)]
    assert sum(counts.values()) == sum(length > 24 for length in lengths) > 0
    assert f"texts cut: {counts['train']} of train, " in said


@pytest.mark.parametrize("objective", ["causal_lm", "sequence_classification"])
def test_what_is_too_short_is_left_out_of_every_part(
    there: Path, objective: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a part of the same source and of another; rows are still counted in the source."""
    settings = sets(f"objective={objective}", "data.min_length=9", "data.test=also.parquet", LOSS)
    words.texts(40).to_parquet("also.parquet")
    assert curate("text.yaml", "--out", "out", *settings) == 0
    said = capsys.readouterr().out
    lengths = [len(ids) for ids in words.tokenizer()(words.passages(60))["input_ids"]]
    # EOS makes up for the first token, which nothing predicts
    long = [row for row, length in enumerate(lengths) if length >= 9]
    short = [sum(length < 9 for length in part) for part in (lengths, lengths[:40])]
    assert min(short) > 0
    assert f"texts left out: {short[0]} of texts.parquet, {short[1]} of also.parquet, sho" in said
    rows = pl.read_parquet("out/scores.parquet").sort("row")
    assert set(rows["row"]) < set(long)
    assert rows.height == len(long) - round(0.2 * len(long))
    kept = rows.filter("kept")["row"].to_list()
    assert load_from_disk("out")["train"]["note"][:] == [f"row {row}" for row in kept]


def test_frozen_weights_are_in_the_plan_once_and_in_no_graph(there: Path) -> None:
    lora = "model={pretrained: tiny, lora: {rank: 2, target_modules: [c_attn]}}"
    plan = plan_select(check_recipe(parse(words.RECIPE), [lora]), there / "out")
    frozen = sum(4 * p.numel() for p in words.gpt2().parameters())
    assert plan["memory"]["parameters"] == frozen + 4 * plan["parameters"]
    task, _, state = job(lora).start(0)
    step = Step(torch.arange(1), torch.ones(1, dtype=torch.float64), (1e-3,), 0)
    with counting(state.theta) as sizes:
        gradient(task, state.theta, step)
    held = {tensor.untyped_storage().data_ptr() for tensor in task.model.held}
    weights = sum(size for place, size in sizes.items() if place in held)
    assert weights > frozen  # which is in float32, and the job in float64
    assert graph_size(task, state.theta, step) == sum(sizes.values()) - weights > 0


def test_the_plan_counts_the_graph_of_the_targets_where_it_is_the_larger(there: Path) -> None:
    settings = ["training.batch_size=2", "data.max_length=32"]
    plan = plan_select(check_recipe(parse(words.RECIPE), settings), there / "out")
    prepared = job(*settings, dtype="float32")
    task, _, state = prepared.start(0)
    theta, found = state.theta.requires_grad_(), []
    for target in prepared.data.half_targets:
        first = next(target.examples.chunks(10**6))
        with counting(theta) as sizes:
            batch = target.examples.batch(first, CPU)
            task.objective.losses(tiny.bound(task.model, theta, training=False), batch)
        found.append(sum(sizes.values()))
    assert plan["memory"]["graph"] == pytest.approx(max(found), rel=0.02)
    assert plan["memory"]["graph"] > graph_size(task, state.theta, prepared.steps(0)[0])


def test_evaluation_retrains_and_verify_leaves_out(there: Path) -> None:
    evaluation = "evaluation={seeds: [0], against: [everything, random, loss]}"
    assert curate("text.yaml", "--out", "out", *sets(evaluation)) == 0
    found = json.loads(Path("out/provenance.json").read_text())["evaluation"]
    assert {row["trained_on"] for row in found} == {"look_ahead", "everything", "random", "loss"}
    assert all(row["loss"]["mean"] > 0 and "token_accuracy" in row for row in found)
    assert verify("out", "--examples", "4") == 0
