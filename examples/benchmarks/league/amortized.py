"""What is lost when look-ahead scores a sample, and the rest of the scores are predicted?

The league's MNIST settings at ten times the candidates: 20,000, with 300 target rows as before.
Everyone keeps the same number of rows, the share of right ones. In every split a model is trained
from scratch on everything; on random rows; on what `curate select` keeps when it scores all rows;
on what it keeps with `score: {sample: N}`, for several N; on rows of small loss by the model that
the features of one of these come from; and on the rows that are right. Every training is stopped
where the validation loss is lowest.

Cost is processor seconds of scoring, from data in memory to what is kept. Scoring all rows is the
look-ahead and a training on everything, whose losses are evidence, too; shares of cost are given of
both together, and of the look-ahead alone. Predicting is all of it: the sample's look-ahead, the
training on the sample, that of the model that the features come from, and all rows' predictions.

What the program says of its predictions, measured on rows of the sample kept back, is beside the
truth: scores of all rows that are not of the sample. Those come of a longer training, and are
smaller, so that the interval is also tried on scores of another sample of the same size.

    python examples/benchmarks/league/amortized.py --data DIR --out DIR2 [--splits 10] [SETTING ...]

DIR holds mnist_train.parquet (image: 784 bytes, label; 60,000 rows). A split takes about two
minutes on one core. What is in DIR2 already is not done again; the table is made of all of it.
Where half of the images are turned choosing half of them does harm, so that this is not tried
unless it is asked for.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from fields import TENFOLD, Setting
from league import Array, command, curve, interval, stopped

from curate.influence import row_metrics
from curate.pipeline.amortize import Amortized, extended
from curate.pipeline.job import Job, prepare
from curate.pipeline.score import Chosen, choose, cut
from curate.recipe import check_recipe
from curate.runtime.progress import Phases
from curate.selection.ranking import auroc, rank_correlation

SAMPLES, BY_LOSS = (250, 500, 1000, 2000), 1000
"""Rows that are scored; the sample whose feature model's losses are tried as scores."""
EXACT, EVERYTHING, LOSS = "all rows scored", "everything", f"small loss, {BY_LOSS:,}"
DRAWS = 10_000
"""Splits are drawn anew so often for the interval of a ratio."""


class Processor(Phases):
    """Phases, and processor seconds of each; all of what is run within `counting`."""

    def __init__(self) -> None:
        super().__init__()
        self.spent: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str, total: int = 0, unit: str = "step") -> Iterator[Callable[..., None]]:
        """See `Phases.phase`."""
        with self.counting(name), super().phase(name, total, unit) as tick:
            yield tick

    @contextmanager
    def counting(self, name: str) -> Iterator[None]:
        """Add the processor seconds of the body."""
        begin = time.process_time()
        yield
        self.spent[name] = self.spent.get(name, 0.0) + time.process_time() - begin


def scored(job: Job) -> tuple[Chosen, Amortized | None, dict[str, float]]:
    """What is kept of all candidates, how it was learned, and processor seconds by phase."""
    phases, amortized = Processor(), None
    with phases.counting("all"):
        chosen = choose(job, "look_ahead", phases)
        if job.sample is not None:
            chosen, amortized = extended(job, chosen, phases, None)
    return chosen, amortized, phases.spent


def honest(job: Job, amortized: Amortized, predicted: Chosen, exact: Chosen) -> dict[str, Any]:
    """What is said of predictions beside what is so, over rows that are not of the sample."""
    assert job.whole is not None
    assert job.sample is not None
    rest = np.delete(np.arange(len(job.whole.examples)), job.sample)
    own, true = predicted.scores.score[rest], exact.scores.score[rest]
    another = np.sort(np.random.default_rng(1).choice(rest, len(job.sample), replace=False))
    again = choose(
        replace(job, data=job.whole.only(another), sample=another), "look_ahead", Phases()
    )
    beside = predicted.scores.score[another]
    width = amortized.quality.width
    return {
        "said": amortized.quality.row(),
        "spearman": rank_correlation(own, true),
        "alike": float(np.mean(predicted.choice.kept == exact.choice.kept)),
        "held": float(np.mean(np.abs(own - true) <= width)),
        "spread": float(true.std() / own.std()),
        "again": {
            "spearman": rank_correlation(beside, again.scores.score),
            "exact": rank_correlation(exact.scores.score[another], again.scores.score),
            "held": float(np.mean(np.abs(beside - again.scores.score) <= width)),
        },
    }


def one_split(setting: Setting, split: int) -> dict[str, Any]:
    """Everything that is measured on one split, in plain values."""
    broken, cpu = setting.tables["train"]["broken"].to_numpy(), torch.device("cpu")
    keep = {"fraction": float(1 - broken.mean())}
    with tempfile.TemporaryDirectory() as folder:
        recipe = setting.written(Path(folder)) | {"selection": {"keep": keep}}
        job = prepare(check_recipe(recipe), cpu)
        samples = {n: recipe | {"score": {"sample": n}} for n in SAMPLES}
        jobs = {n: prepare(check_recipe(own), cpu) for n, own in samples.items()}
    exact, _, spent = scored(job)
    drawn = np.random.default_rng([split, 5]).random(len(broken))
    kept = {EVERYTHING: np.ones(len(broken), dtype=bool), "oracle": ~broken}
    kept |= {"random": cut(job, drawn).kept, EXACT: exact.choice.kept}
    found = retrained(job, kept, {EXACT: exact.scores.score}, {EXACT: spent})
    return merged(found, predictions(job, jobs, exact))


def predictions(job: Job, jobs: dict[int, Job], exact: Chosen) -> dict[str, Any]:
    """What is measured of samples of several sizes, one job each."""
    scores, costs, quality = dict[str, Array](), dict[str, dict[str, float]](), {}
    for n, own in jobs.items():
        found, amortized, costs[f"{n:,}"] = scored(own)
        assert amortized is not None
        scores[f"{n:,}"] = found.scores.score
        quality[f"{n:,}"] = honest(own, amortized, found, exact)
        if n == BY_LOSS:
            task, _, _ = own.start(own.recipe.training.seed)
            last = amortized.views.states[-1]
            losses = row_metrics(task.model, task.objective, job.data.examples, last)["loss"]
            scores[LOSS] = -np.asarray(losses)
    kept = {name: cut(job, score).kept for name, score in scores.items()}
    return retrained(job, kept, scores, costs) | {"quality": quality}


def retrained(
    job: Job,
    kept: dict[str, Array],
    scores: dict[str, Array],
    costs: dict[str, dict[str, float]],
) -> dict[str, Any]:
    """What training on kept rows comes to, by what kept them; how many of them are not right."""
    task, _, _ = job.start(job.recipe.training.seed + 1)
    broken = np.array(job.data.table["broken"][:])
    return {
        "results": {
            name: stopped(curve(job, task, np.flatnonzero(own), job.total_steps()))
            for name, own in kept.items()
        },
        "broken kept": {name: float(broken[own].mean()) for name, own in kept.items()},
        "auroc": {name: auroc(-score, broken) for name, score in scores.items()},
        "processor": costs,
    }


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Both, and what is in both by its own keys."""
    return {key: one.get(key, {}) | other.get(key, {}) for key in one | other}


def ratio(gains: Array, whole: Array) -> tuple[float, float, float]:
    """Ratio of the means of paired gains, shape (S,), and its 95 % bootstrap interval."""
    drawn = np.random.default_rng(0).integers(0, len(gains), (DRAWS, len(gains)))
    low, high = np.quantile(gains[drawn].mean(axis=1) / whole[drawn].mean(axis=1), (0.025, 0.975))
    return float(gains.mean() / whole.mean()), float(low), float(high)


def tables(found: dict[str, list[dict[str, Any]]]) -> str:
    """Every setting's figures, in Markdown."""
    parts = [part for name, own in found.items() if own for part in (worth(name, own), said(own))]
    return "\n".join(parts)


def worth(name: str, splits: list[dict[str, Any]]) -> str:
    """Gains and costs."""

    def values(key: str, way: str) -> Array:
        return np.array([own["results"][way][key] for own in splits])

    base, seconds = values("test", EVERYTHING), [own["processor"][EXACT] for own in splits]
    whole = mean(own["all"] for own in seconds)
    ahead = whole - mean(own["train on everything"] for own in seconds)
    lines = [
        f"#### {name}: {len(splits)} splits",
        "",
        f"Scoring all rows takes {whole:.1f} s, {ahead:.1f} without the training on everything.",
        "",
        "| trained on | seconds | share of all | of the look-ahead | test loss | gain [95 %] "
        "| share of the exact gain [95 %] | accuracy | not right | AUROC |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for way in (EVERYTHING, "random", LOSS, *(f"{n:,}" for n in SAMPLES), EXACT, "oracle"):
        gains, costs = base - values("test", way), [own["processor"].get(way) for own in splits]
        spent = mean(own["all"] for own in costs) if costs[0] else None
        cost = "| |" if spent is None else f"{spent:.2f} | {spent / whole:.1%} |"
        cost += " |" if spent is None or way == EXACT else f" {spent / ahead:.1%} |"
        share = "{:.0%} [{:.0%}, {:.0%}]".format(*ratio(gains, base - values("test", EXACT)))
        gain = "{:+.4f} ± {:.4f}".format(*interval([*map(float, gains)]))
        aurocs = [own["auroc"][way] for own in splits if way in own["auroc"]]
        lines.append(
            f"| {f'sample of {way}' if way in splits[0]['quality'] else way} | {cost} "
            f"{values('test', way).mean():.4f} | {gain if way != EVERYTHING else ''} "
            f"| {share if way not in (EVERYTHING, EXACT) else ''} "
            f"| {values('test accuracy', way).mean():.4f} "
            f"| {mean(own['broken kept'][way] for own in splits):.1%} "
            f"| {f'{mean(aurocs):.3f}' if aurocs else ''} |"
        )
    return "\n".join([*lines, ""])


def said(splits: list[dict[str, Any]]) -> str:
    """What is said of predictions, and what is so."""
    lines = [
        "| sample | Spearman, said | over all rows | another sample's scores | all rows' exact "
        "with another sample's | chosen alike, said | over all rows | by chance "
        "| interval holds, all rows | another sample | spread of scores, exact to predicted |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for n in (f"{n:,}" for n in SAMPLES):
        own = [split["quality"][n] for split in splits]

        def over(*path: str, own: list[Any] = own) -> float:
            values = own
            for key in path:
                values = [value[key] for value in values]
            return float(mean(values))

        lines.append(
            f"| {n} | {over('said', 'spearman'):.3f} | {over('spearman'):.3f} "
            f"| {over('again', 'spearman'):.3f} | {over('again', 'exact'):.3f} "
            f"| {over('said', 'alike'):.3f} | {over('alike'):.3f} "
            f"| {over('said', 'by_chance'):.3f} | {over('held'):.3f} "
            f"| {over('again', 'held'):.3f} | {over('spread'):.2f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(
        command(
            "What is lost when scores are predicted?",
            TENFOLD,
            [*TENFOLD][:2],
            one_split,
            lambda found: ", ".join(
                f"{way} {own['test']:.4f}" for way, own in found["results"].items()
            ),
            tables,
        )
    )
