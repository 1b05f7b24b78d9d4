"""The league: what choosing is worth, on data that it was not built on.

In every split of every setting `curate select` runs as it comes, and what it keeps is retrained
on beside what a skeptic would try: everything; random rows, plain and of the same labels;
the target rows alone; rows of small loss; those of high KNN-Shapley value; those whose label a
logistic regression, out of fold, finds likely (cleanlab's self-confidence); and the rows that are
right, which nobody knows (the oracle). All of the others are told the share of right rows (nine
in ten where none is wrong), which is more than the product is told. Every model is trained from
scratch for the same number of steps at most, and stopped where the validation loss is lowest; the
test set is used for nothing but the figures.

    python examples/benchmarks/league/league.py --data DIR --out DIR2 [--splits 10] [SETTING ...]

DIR holds mnist_train.parquet (image: 784 bytes, label), trec.parquet (text, coarse) and
subj.parquet (text, label); the digits come with scikit-learn. A split is done in about a minute
on one core. What is in DIR2 already is not done again; the table is made of all that is there.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import datasets
import numpy as np
import polars as pl
import torch
from fields import SETTINGS, Setting
from scipy.stats import t

from curate.influence import row_metrics
from curate.pipeline.job import Job, prepare
from curate.pipeline.score import cut
from curate.pipeline.select import run_select
from curate.recipe import check_recipe
from curate.recipe.schema import ON_TEXT
from curate.selection.budget import Budget
from curate.selection.policies import shapley_values
from curate.selection.ranking import auroc
from curate.trajectory import Task, forward_step, replay

Array = np.ndarray[Any, Any]
LOOKS, LONGER = 24, 4
"""How often a training is measured, half as often on texts; how many times as long as others the
one is that the compute multiplier is read from."""


def curve(job: Job, task: Task, rows: Array, steps: int) -> list[dict[str, float]]:
    """Train on some rows: step, validation loss, test loss and metrics, look by look."""
    seed = job.recipe.training.seed + 1  # not the start that the product judged with
    _, rule, state = job.start(seed)
    plan, found, taken = job.steps(seed, torch.from_numpy(rows), steps), [], 0
    every = max(1, job.total_steps() // (LOOKS // 2 if _of_texts(job) else LOOKS))
    while taken < steps:
        state = replay(task, rule, state, plan[taken : taken + every])
        taken = min(steps, taken + every)
        assert job.data.test is not None
        (validation,) = job.data.validation.values()
        looks = {}
        for name, examples in (("validation", validation), ("test", job.data.test)):
            own = row_metrics(task.model, task.objective, examples, state.theta)
            looks[name] = float(own["loss"].sum() / own["size"].sum())
            for metric in own.keys() - {"loss", "size"}:
                looks[f"{name} {metric}"] = float(own[metric].mean())
        found.append({"step": taken, **looks})
    return found


def stopped(found: list[dict[str, float]]) -> dict[str, float]:
    """Where the validation loss was lowest."""
    return min(found, key=lambda look: look["validation"])


def ways(job: Job, setting: Setting, share: float, split: int) -> dict[str, tuple[Array, Array]]:
    """What others would keep of the candidates, bool, and by which scores, both of shape (N,).

    Of texts, KNN-Shapley and the logistic regression see the setting's numbers; a language model's
    have neither those nor labels.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    count, size = len(job.data.examples), Budget(fraction=share)
    random = np.random.default_rng([split, 5])
    drawn = random.random(count)
    found, scored = {"random": (cut(job, drawn, size).kept, drawn)}, dict[str, Array]()
    if "label" in setting.tables["train"]:
        (target,) = job.data.validation.values()
        (x, y), (target_x, target_y) = (
            _arrays(job, setting.tables["train"], job.data.examples),
            _arrays(job, setting.tables["validation"], target),
        )
        found["random, same labels"] = (size.choose(drawn, y).kept, drawn)
        scored["label quality"] = cross_val_predict(
            LogisticRegression(max_iter=3000, C=0.1), x, y, cv=5, method="predict_proba"
        )[np.arange(count), y]
        scored["KNN-Shapley"] = shapley_values(x, y, target_x, target_y, 5)
    seed = job.recipe.training.seed
    task, rule, state = job.start(seed)
    losses, seen = np.zeros(count), np.zeros(count)
    for step in job.steps(seed):
        state, own = forward_step(task, rule, state, step)
        losses[step.rows.numpy()] -= own.double().numpy()
        seen[step.rows.numpy()] += 1
    scored["small loss"] = losses / seen / (1 if job.data.tokens is None else job.data.tokens)
    for name, score in scored.items():
        found[name] = (size.choose(score).kept, score)
    return found


def _of_texts(job: Job) -> bool:
    """Whether rows are texts, which are dear to look at."""
    return job.recipe.objective in ON_TEXT


def _arrays(job: Job, rows: pl.DataFrame, examples: Any) -> tuple[Array, Array]:
    """Features and labels."""
    if _of_texts(job):
        return np.array(rows["x"].to_list()), rows["label"].to_numpy()
    return examples.all_features().numpy(), examples.labels.numpy()


def one_split(setting: Setting, split: int) -> dict[str, Any]:
    """Everything that is measured on one split, in plain values."""
    with tempfile.TemporaryDirectory() as folder:
        checked = check_recipe(setting.written(Path(folder)))
        job = prepare(checked, torch.device("cpu"))
        broken = setting.tables["train"]["broken"].to_numpy()
        count, total = len(broken), job.total_steps()
        everything = np.arange(count)
        task, _, _ = job.start(checked.training.seed + 1)
        begin = time.perf_counter()
        plain = curve(job, task, everything, total)
        seconds = time.perf_counter() - begin
        begin = time.perf_counter()
        summary = run_select(checked, Path(folder) / "out")
        spent = {"passes": summary["cost"], "time": (time.perf_counter() - begin) / seconds}
        scores = pl.read_parquet(Path(folder) / "out" / "scores.parquet").sort("row")
        kept = {"curate": scores["kept"].to_numpy(), "oracle": ~broken}
        scored = {"curate": scores["score"].to_numpy()}
        share = 1 - broken.mean() if broken.any() else 0.9
        for name, (mask, score) in ways(job, setting, share, split).items():
            kept[name], scored[name] = mask, score
        results = {"everything": stopped(plain)}
        for name, mask in kept.items():
            if mask.all():
                results[name] = results["everything"]
                continue
            results[name] = stopped(curve(job, task, np.flatnonzero(mask), total))
        (target,) = job.data.validation.values()
        alone = Task(task.model, task.objective, target)
        results["target alone"] = stopped(curve(job, alone, np.arange(len(target)), total))
        longer = curve(job, task, everything, LONGER * total)
        goal = results["curate"]["test"]
        needed = next((look["step"] for look in longer if look["test"] <= goal), None)
        used = total * (1 + summary["cost"])
        return {
            "results": results,
            "kept": int(kept["curate"].sum()),
            "rows": count,
            "broken": int(broken.sum()),
            "broken kept": int((broken & kept["curate"]).sum()),
            "auroc": {
                name: auroc(-score, broken)
                for name, score in scored.items()
                if broken.any() and "random" not in name
            },
            "answer": summary["worth"]["answer"],
            "worth": summary["worth"],
            "repeats": summary["repeats"],
            "cost": spent,
            "multiplier": None if needed is None else needed / used,
        }


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval."""
    count = len(values)
    if count < 2:
        return mean(values), float("nan")
    return mean(values), float(t.ppf(0.975, count - 1)) * stdev(values) / count**0.5


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Every setting's figures, in Markdown."""
    lines = []
    for name, splits in found.items():
        if not splits:
            continue
        losses = {
            way: [own["results"][way]["test"] for own in splits] for way in splits[0]["results"]
        }
        base = losses["everything"]
        answers = [own["answer"] for own in splits]
        kept = mean(own["kept"] / own["rows"] for own in splits)
        lines += [
            f"### {name}: {len(splits)} splits",
            "",
            f"kept {kept:.0%}; pays {answers.count('pays')}, does not pay "
            f"{answers.count('does not pay')}, cannot tell {answers.count('cannot tell')}; cost "
            f"{mean(own['cost']['passes'] for own in splits):.1f} plain trainings in passes, "
            f"{mean(own['cost']['time'] for own in splits):.1f} in time; compute multiplier "
            + _multiplier(splits),
            "",
            "| trained on | test loss | gain [95 %] | share of the oracle's | accuracy | AUROC |",
            "|---|---|---|---|---|---|",
        ]
        oracle = mean(base) - mean(losses["oracle"])
        for way in sorted(losses, key=lambda way: mean(losses[way])):
            gains = [a - b for a, b in zip(base, losses[way], strict=True)]
            gain, reach = interval(gains)
            part = f"{gain / oracle:.0%}" if oracle > 0.01 else ""
            accuracy = [own["results"][way].get("test accuracy", float("nan")) for own in splits]
            aurocs = [own["auroc"][way] for own in splits if way in own["auroc"]]
            lines.append(
                f"| {way} | {mean(losses[way]):.3f} | "
                + (f"{gain:+.3f} ± {reach:.3f}" if way != "everything" else "")
                + f" | {part if way != 'everything' else ''} | {mean(accuracy):.3f} | "
                + (f"{mean(aurocs):.3f} |" if aurocs else "|")
            )
        lines.append("")
    return "\n".join(lines)


def _multiplier(splits: list[dict[str, Any]]) -> str:
    never = sum(own["multiplier"] is None for own in splits)
    finite = [own["multiplier"] for own in splits if own["multiplier"] is not None]
    text = f"{mean(finite):.2f}" if finite else ""
    most = f"not reached in {LONGER} trainings' steps {never} times of {len(splits)}"
    return f"{text}{', ' if finite and never else ''}{most if never else ''}"


def command(
    about: str,
    settings: Mapping[str, Callable[[Path, int], Setting]],
    default: Sequence[str],
    measure: Callable[[Setting, int], dict[str, Any]],
    told: Callable[[dict[str, Any]], str],
    table: Callable[[dict[str, list[dict[str, Any]]]], str],
) -> int:
    """Measure every split of some settings that is not there yet; a table of all that is."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="number of the first split")
    parser.add_argument(
        "names",
        nargs="*",
        help=f"of {'; '.join(settings)}; if none: {'; '.join(default)}".replace("%", "%%"),
    )
    asked = parser.parse_args()
    names = asked.names or default
    if unknown := [name for name in names if name not in settings]:
        print(
            f"no setting is called {unknown[0]!r}; there are {'; '.join(settings)}", file=sys.stderr
        )
        return 2
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    asked.out.mkdir(parents=True, exist_ok=True)
    for split in range(asked.first, asked.first + asked.splits):
        for name in names:
            path = asked.out / f"{name.replace(' ', '_').replace('%', 'pc')}-{split}.json"
            if path.exists():
                continue
            found = measure(settings[name](asked.data, split), split)
            part = path.with_suffix(".part")
            part.write_text(json.dumps({"setting": name, "split": split} | found))
            part.rename(path)
            print(f"{name}, split {split}: {told(found)}", flush=True)
    there = [json.loads(path.read_text()) for path in sorted(asked.out.glob("*.json"))]
    text = table({name: [own for own in there if own["setting"] == name] for name in names})
    (asked.out / "table.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(
        command(
            "What choosing is worth.",
            SETTINGS,
            [*SETTINGS],
            one_split,
            lambda found: f"{found['answer']}, kept {found['kept']}",
            table,
        )
    )
