"""A run in words: what was asked for, what came out, and how far it can be trusted.

Facts are sentences by their names. The page, the card, `curate inspect` and the closing lines of
`curate select` print the same ones.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from curate.output.saved_run import SavedRun
from curate.output.verdict import (
    corrections_line,
    error_line,
    labels_line,
    learned_line,
    prediction_line,
    protocol_line,
    ratio_line,
    repeats_line,
    trust_ratio,
    worth_line,
)
from curate.output.words import count, percent, visible
from curate.recipe import Recipe
from curate.recipe.data import Source, Split
from curate.recipe.names import POLICIES, find_objective
from curate.recipe.target import TargetSection

Facts = dict[str, str]


def every_fact(run: SavedRun) -> dict[str, Facts]:
    """All that is said about a run, by the question that it answers."""
    sections = {
        "Does choosing pay?": worth(run),
        "Asked for": asked(run),
        "Came out": came_out(run.provenance, run.kept, len(run.scores)),
        "Can the influences be trusted?": trust(run),
    }
    return {
        title: {name: visible(text) for name, text in facts.items()}
        for title, facts in sections.items()
    }


def asked(run: SavedRun) -> Facts:
    """What the recipe asked for."""
    recipe = run.recipe
    if recipe is None:
        return {"data": run.source, "selection": f"{run.policy}; no recipe made this directory"}
    training, data, columns = recipe.training, recipe.data, recipe.data.columns
    reads = ", ".join(columns.features or columns.texts)
    if find_objective(recipe.objective).label and columns.label:
        reads += f" → {columns.label}"
    facts = {"data": f"{run.source} ({reads})", "target": _targets(recipe)}
    if recipe.target is not None:
        facts["target"] += _goal(recipe.target)
    if data.label_noise is not None:
        facts["label noise"] = f"{percent(data.label_noise.fraction)} of labels wrong on purpose"
    return facts | {
        "model": f"{_settings(recipe.model)}; {recipe.objective}",
        "training": (
            f"{count(training.epochs, 'epoch')} in batches of {training.batch_size}; "
            f"{training.optimizer.kind}, learning rate {training.optimizer.lr:g}"
        ),
        "selection": selection_in_words(recipe),
    }


def selection_in_words(recipe: Recipe) -> str:
    """Policy, how far it looks ahead, and the budget."""
    selection = recipe.selection
    parts: list[str] = [selection.policy]
    if POLICIES[selection.policy].goes_back:
        horizon = selection.horizon
        ahead = "the whole run" if horizon == "full" else count(horizon, "step")
        parts.append(f"horizon {ahead}, {count(selection.rounds, 'round')}")
    if recipe.score is not None:
        parts.append(f"scores predicted from those of {recipe.score.sample:,} rows")
    group = f" of each {selection.group_by}" if selection.group_by else ""
    if selection.keep.auto:
        return f"{', '.join(parts)}; how much is kept{group} was found by retraining"
    ((name, value),) = selection.keep.model_dump(exclude_none=True).items()
    if name == "threshold":
        kept = f"scores from {value:g}"
    elif isinstance(value, float):
        kept = percent(value) + (" of the tokens" if name == "tokens" else "")
    else:
        kept = f"{value:,} {'tokens' if name == 'tokens' else 'rows'}"
    return f"{', '.join(parts)}; keep {kept}{group}"


def came_out(made: Mapping[str, Any], kept: int, candidates: int) -> Facts:
    """What a run did and left, from its provenance or its summary."""
    facts = {"rows": f"{kept:,} of {candidates:,} kept ({percent(kept / candidates)})"}
    if (tokens := made.get("tokens")) and tokens["candidates"]:
        share = percent(tokens["kept"] / tokens["candidates"])
        facts["tokens"] = f"{tokens['kept']:,} of {tokens['candidates']:,} kept ({share})"
    if noise := made.get("noise"):
        facts["label noise"] = (
            f"{noise['kept']:,} of {count(noise['planted'], 'wrong label')} kept; "
            f"AUROC of the score {noise['auroc']:.3f}"
        )
    if (judged := made.get("worth")) and (line := learned_line(judged)):
        facts["training"] = line
    if relabelled := made.get("relabelled"):
        facts["corrections"] = corrections_line(relabelled, made.get("worth"))
    if labels := made.get("labels"):
        facts["suspected labels"] = labels_line(labels)
    for name, key, limit in (
        ("texts cut", "truncated", "after data.max_length"),
        ("texts left out", "left_out", "shorter than data.min_length"),
    ):
        numbers = made.get(key, {}).items()
        if parts := [f"{number:,} of {source}" for source, number in numbers if number]:
            facts[name] = f"{', '.join(parts)}, {limit}"
    if "steps" in made:
        processes = made.get("processes", 1)
        shared = "" if processes == 1 else f", {processes} processes"
        facts["run"] = (
            f"{made['policy']} ({count(made['steps'], 'step')}, {made['device']}{shared})"
        )
    if prediction := made.get("prediction"):
        facts["prediction"] = prediction_line(prediction)
    if seconds := made.get("seconds"):
        facts["time"] = ", ".join(f"{phase} {value:.1f} s" for phase, value in seconds.items())
    if failed := made.get("failed"):
        facts["failed"] = "; ".join(f"{part}: {why}" for part, why in failed.items())
    versions = made.get("versions", {})
    parts = [f"{name} {versions[name]}" for name in ("curate", "torch") if name in versions]
    if commit := made.get("git_commit"):
        parts.append(f"commit {commit[:10]}")
    return facts | ({"made with": ", ".join(parts)} if parts else {})


def worth(run: SavedRun) -> Facts:
    """Whether choosing pays, and how that was found."""
    made = run.provenance
    if "worth" in made:
        facts = {
            "choosing": _sentence(worth_line(made["worth"])),
            "judged": _sentence(protocol_line(made["worth"], len(run.scores))),
        }
        if "cost" in made:
            facts["cost"] = f"{made['cost']:.1f} plain trainings, scoring and judging together"
    else:
        why = "a training loop made the choice" if run.recipe is None else "selection.judge is off"
        facts = {"choosing": f"Not measured: {why}, or there is no target."}
    if "repeats" in made:
        facts["scores"] = _sentence(repeats_line(made["repeats"]))
    return facts


def trust(run: SavedRun) -> Facts:
    """How far the influences can be trusted, each with where that is known from."""
    if not run.has_influences:
        return {"influences": f"{run.policy} has none; its scores rank, and say no more."}
    ratio = trust_ratio(run.windows)
    expected = "Not estimated: selection.probing is 0, or a training loop made the choice."
    if "error" in run.provenance:
        expected = (
            f"{_sentence(error_line(run.provenance['error'], ratio))} This is about the target as "
            "it is: whether the rows kept are worth keeping, a model retrained on them says."
        )
    facts = {"expected error": expected}
    if ratio is not None:
        facts["prediction"] = ratio_line(ratio)
    facts["curate verify"] = (
        "Not run on this directory. It leaves rows out, trains again, and is sure."
    )
    if (verified := run.verification) is not None:
        facts["curate verify"] = f"{verified['verdict']} ({verified['examples']} rows left out)"
    return facts


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _goal(section: TargetSection) -> str:
    """What is to be low on a target, where that is not the loss of training over all rows."""
    parts = [section.loss] if section.loss is not None else []
    if section.balance is not None:
        alike = f"worst first ({section.worst:g})" if section.worst else "alike"
        parts.append(f"every {section.balance} {alike}")
    return f"; {', '.join(parts)}" if parts else ""


def _targets(recipe: Recipe) -> str:
    target = recipe.data.validation
    if target is None:
        return "none"
    if isinstance(target, Split):
        return f"{percent(target.fraction)} of the rows, held out"
    if isinstance(target, Source):
        return str(target)
    weights = recipe.selection.weights or {}
    parts = (
        f"{name}: {source}" + (f" (weight {weights[name]:g})" if name in weights else "")
        for name, source in target.items()
    )
    return f"mean of {', '.join(parts)}"


def _settings(section: BaseModel) -> str:
    parts = []
    for name, value in section.model_dump(mode="json", exclude_none=True).items():
        if name in ("kind", "pretrained", "factory"):
            parts.append(str(value))
        elif value not in ({}, [], False):
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            parts.append(f"{name} {text}")
    return ", ".join(parts)
