"""`curate select`, from a checked recipe to a directory and a summary of what is in it."""

from pathlib import Path
from typing import Any

from curate.choose import Chosen, choose
from curate.errors import UserError
from curate.evaluate import auroc, evaluate
from curate.output import (
    Selection,
    check_free,
    provenance,
    score_table,
    staged,
    write_selection,
)
from curate.prepare import Job, choose_device, prepare
from curate.progress import Phases
from curate.recipe import Recipe
from curate.threads import suitable_threads


def run_select(
    recipe: Recipe, out: Path, *, device: str = "auto", overwrite: bool = False,
    phases: Phases | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Score the candidates of a recipe, keep what its budget allows, write it to `out`.

    Args:
        device: auto, cpu or cuda.
        overwrite: replace `out` if curate wrote it.
        phases: where phase times go; shows bars if made with `bars=True`.

    Returns:
        The summary that `--json` prints: rows in and kept, seconds per phase,
        noise AUROC where noise was planted, and the evaluation where the recipe asks for one.

    Raises:
        UserError: nothing was computed or written; what to change is in the message.
        RunError: the run failed on the way; nothing was written.
    """
    phases = phases or Phases()
    check_free(out, overwrite=overwrite)
    with phases.phase("read"):
        job = prepare(recipe, choose_device(device))
    with suitable_threads(job.step_flops()) as threads:
        chosen, summary = _score_and_evaluate(job, phases)
    names = [target.name for target in job.data.targets]
    table = score_table(chosen.scores, chosen.choice, job.data.examples.rows.numpy(), names)
    made_with = provenance(recipe, job.data.sources) | {"threads": threads}
    with phases.phase("write"), staged(out, overwrite=overwrite) as stage:
        seconds = {name: round(value, 3) for name, value in phases.seconds.items()}
        summary["seconds"] = seconds
        selection = Selection(
            job.data.table, table, source=recipe.data.train.path, policy=recipe.selection.policy,
            provenance=made_with | summary, recipe=recipe,
        )  # fmt: skip
        write_selection(stage, out, selection)
    summary["out"] = str(out)
    summary["seconds"] = {name: round(value, 3) for name, value in phases.seconds.items()}
    return summary


def _score_and_evaluate(job: Job, phases: Phases) -> tuple[Chosen, dict[str, Any]]:
    recipe = job.recipe
    chosen = choose(job, recipe.selection.policy, phases)
    if not chosen.choice.kept.any():
        raise UserError(
            f"selection.keep.threshold: {recipe.selection.keep.threshold} keeps no row; "
            f"the highest score is {chosen.scores.score.max():.4g}."
        )
    summary: dict[str, Any] = {
        "policy": recipe.selection.policy,
        "candidates": len(job.data.examples),
        "kept": int(chosen.choice.kept.sum()),
        "steps": job.total_steps(),
        "device": str(job.device),
    }
    if job.data.noisy is not None:
        noisy = job.data.noisy.numpy()
        summary["noise"] = {
            "planted": int(noisy.sum()),
            "kept": int((noisy & chosen.choice.kept).sum()),
            "auroc": auroc(-chosen.scores.score, noisy),
        }
    if recipe.evaluation is not None:
        summary["evaluation"] = [row.summary() for row in evaluate(job, chosen, phases)]
    return chosen, summary
