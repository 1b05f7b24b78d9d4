"""A run in words: what was asked for, what came out, and how far it can be trusted."""

from typing import Any

from pydantic import BaseModel

from curate.output.figures import ratio_in_words, trust_ratio
from curate.output.saved_run import Run
from curate.output.verdict import (
    protocol_line,
    repeats_line,
    share_in_words,
    verdict,
    worth_line,
)
from curate.output.words import count, plain, visible
from curate.recipe import Recipe
from curate.recipe.data import Source, Split

Facts = list[tuple[str, str]]


def asked(run: Run) -> Facts:
    """What the recipe asked for."""
    recipe = run.recipe
    if recipe is None:
        return [
            ("data", visible(run.source)),
            ("selection", f"{run.provenance.policy}; no recipe made this directory"),
        ]
    training, data, columns = recipe.training, recipe.data, recipe.data.columns
    used = columns.features or [
        name
        for name in (columns.text, columns.prompt, columns.completion, columns.messages)
        if name is not None
    ]
    reads = ", ".join(used)
    if recipe.objective != "causal_lm" and columns.label:
        reads += f" → {columns.label}"
    facts: Facts = [("data", f"{run.source} ({reads})"), ("target", _targets(recipe))]
    if data.label_noise is not None:
        facts.append(
            ("label noise", f"{_percent(data.label_noise.fraction)} of labels wrong on purpose")
        )
    optimizer = training.optimizer
    facts += [
        ("model", f"{_settings(recipe.model)}; {recipe.objective}"),
        (
            "training",
            f"{count(training.epochs, 'epoch')} in batches of {training.batch_size}; "
            f"{optimizer.kind}, learning rate {optimizer.lr:g}",
        ),
        ("selection", selection_in_words(recipe)),
    ]
    return [(name, visible(text)) for name, text in facts]


def selection_in_words(recipe: Recipe) -> str:
    """Policy, how far it looks ahead, and the budget."""
    own = recipe.selection
    parts: list[str] = [own.policy]
    if own.policy == "look_ahead":
        ahead = "the whole run" if own.horizon == "full" else count(own.horizon, "step")
        parts.append(f"horizon {ahead}, {count(own.rounds, 'round')}")
    group = f" of each {own.group_by}" if own.group_by else ""
    if own.keep.auto:
        return f"{', '.join(parts)}; how much is kept{group} was found by retraining"
    ((name, value),) = own.keep.model_dump(exclude_none=True).items()
    if name == "fraction" or (name == "tokens" and isinstance(value, float)):
        kept = f"keep {_percent(value)}" + (" of the tokens" if name == "tokens" else "")
    elif name == "threshold":
        kept = f"keep scores from {value:g}"
    else:
        kept = f"keep {value:,} {'tokens' if name == 'tokens' else 'rows'}"
    return f"{', '.join(parts)}; {kept}{group}"


def came_out(run: Run) -> Facts:
    """What the run did and left."""
    own, total = run.provenance, len(run.scores)
    kept = len(run.kept)
    facts = [("rows", f"{kept:,} of {total:,} kept ({_percent(kept / total)})")]
    if own.tokens is not None and own.tokens.candidates:
        share = _percent(own.tokens.kept / own.tokens.candidates)
        facts.append(("tokens", f"{own.tokens.kept:,} of {own.tokens.candidates:,} kept ({share})"))
    if own.noise is not None:
        facts.append(
            (
                "label noise",
                f"{own.noise.kept:,} of {count(own.noise.planted, 'wrong label')} kept; "
                f"AUROC of the score {own.noise.auroc:.3f}",
            )
        )
    for title, counts, limit in (
        ("texts cut", own.truncated, "after data.max_length"),
        ("texts left out", own.left_out, "shorter than data.min_length"),
    ):
        parts = ", ".join(f"{number:,} of {name}" for name, number in counts.items() if number)
        if parts:
            facts.append((title, f"{parts}, {limit}"))
    if own.steps is not None:
        facts.append(("run", f"{count(own.steps, 'step')} on {own.device or 'an unknown device'}"))
    if own.seconds:
        facts.append(("time", ", ".join(f"{k} {v:.1f} s" for k, v in own.seconds.items())))
    versions = [
        f"{name} {own.versions[name]}" for name in ("curate", "torch") if name in own.versions
    ]
    if own.git_commit:
        versions.append(f"commit {own.git_commit[:10]}")
    if versions:
        facts.append(("made with", ", ".join(versions)))
    return [(name, visible(text)) for name, text in facts]


def worth(run: Run) -> Facts:
    """Whether choosing pays, and how that was found."""
    own = run.provenance
    if own.worth is None:
        why = "a training loop made the choice" if run.recipe is None else "selection.judge is off"
        facts = [("choosing", f"Not measured: {why}, or there is no target.")]
    else:
        plain_worth = own.worth.model_dump()
        line = worth_line(plain_worth)
        facts = [("choosing", f"{line[0].upper()}{line[1:]}.")]
        facts.append(("judged", f"{protocol_line(plain_worth)}."))
        if own.cost is not None:
            facts.append(("cost", f"{own.cost:.1f} plain trainings, scoring and judging together"))
    if own.repeats is not None:
        facts.append(("scores", f"{repeats_line(own.repeats.model_dump())}."))
    return facts


def trust(run: Run) -> Facts:
    """How far the influences can be trusted, each with where that is known from."""
    if not run.scores["influence"].count():
        return [
            ("influences", f"{run.provenance.policy} has none; its scores rank, and say no more.")
        ]
    facts = [("expected error", _expected_error(run))]
    ratio = trust_ratio(run.windows)
    if ratio is not None:
        facts.append(("prediction", ratio_in_words(ratio)))
    facts.append(
        (
            "curate verify",
            f"{visible(run.verification.verdict)} ({run.verification.examples} rows left out)"
            if run.verification is not None
            else "Not run on this directory. It leaves rows out, trains again, and is sure.",
        )
    )
    return facts


def _expected_error(run: Run) -> str:
    error = run.provenance.error
    if error is None:
        return "Not estimated: selection.probing is 0, or a training loop made the choice."
    words = verdict(error.error, error.signal, error.probes, trust_ratio(run.windows))
    return (
        f"{words[0].upper()}{words[1:]}. An influence is {plain(error.signal)} on average, and "
        f"expected to be off by {plain(error.error)} "
        f"({share_in_words(error.error, error.signal)}); {count(error.probes, 'removal')} "
        "followed exactly. This is about the target as it is: whether the rows kept are worth "
        "keeping, a model retrained on them says."
    )


def why(run: Run, line: dict[str, Any]) -> str:
    """Why a row was kept or dropped."""
    kept = len(run.kept)
    place = f"rank {line['rank']:,} of {len(run.scores):,}"
    if line["kept"]:
        return f"kept, {visible(line['reason'])}: {place}"
    return f"dropped, {visible(line['reason'])}: {place}, of which {kept:,} are kept"


def _targets(recipe: Recipe) -> str:
    given = recipe.data.validation
    if given is None:
        return "none"
    if isinstance(given, Split):
        return f"{_percent(given.fraction)} of the rows, held out"
    if isinstance(given, Source):
        return str(given)
    weights = recipe.selection.weights or {}
    each = (
        f"{name}: {source}" + (f" (weight {weights[name]:g})" if name in weights else "")
        for name, source in given.items()
    )
    return f"mean of {', '.join(each)}"


def _settings(section: BaseModel) -> str:
    parts = []
    for name, value in section.model_dump(mode="json", exclude_none=True).items():
        if name in ("kind", "pretrained", "factory"):
            parts.append(str(value))
        elif value not in ({}, [], False):
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            parts.append(f"{name} {text}")
    return ", ".join(parts)


def _percent(share: float) -> str:
    if share > 10:
        return "over 1000%"
    return f"{100 * share:.3g}%"
