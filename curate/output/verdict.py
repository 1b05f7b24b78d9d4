"""Whether choosing pays, and whether influences are to be believed: the same words everywhere.

Two statements, and neither stands for the other: influences may be right and choosing by them
do harm (DESIGN 3.11).
"""

from math import inf, isfinite
from typing import Any

import polars as pl

from curate.output.words import count, plain

FIRM, LOOSE = 0.3, 0.6
"""Expected error over the size of an influence, up to which size and order, and order, hold."""
FEW = 5
"""Removals followed below which their error says little."""
WEAK = 0.3
"""Rank correlation of predicted and exact scores below which predictions are weak."""
RELIABLE = 0.5
"""Reliability of scores on the whole target below which they are mostly chance."""
BESIDE = {
    "losses": "losses in training",
    "margins": "margins in training",
    "nearness": "nearness to target rows of the label",
}
"""What scores are made of beside influences, in words."""
FEWEST = 10
"""Examples left out below which an interval is too uncertain itself for a verdict."""
ADDS_UP, FAILS = 0.7, 0.3
"""Realized over predicted change of a window, from which influences add up, or below do not."""
LEARNED = 0.001
"""Share of its loss that a model has to lose in training, to have learned anything."""
AS_READ = "labels as they were read"
"""The way to train that is everything without corrections of labels."""
WITH_TARGET = ("target alone", "everything and target")
"""Ways to train that have the rows of the target among their rows."""
ANSWERS = {
    "pays": "choosing pays",
    "does not pay": "choosing does not pay",
    "cannot tell": "cannot tell whether choosing pays",
}


def verdict(error: float, signal: float, probes: int, ratio: float | None = None) -> str:
    """One sentence on influences of mean size `signal` that are expected to be off by `error`.

    probes: removals that were followed exactly. ratio: realized over predicted change of the
    windows, where it was measured.
    """
    share = _share(error, signal)
    if share > LOOSE:
        return (
            "not to be trusted: bring features to one scale (data.standardize), shorten the "
            "horizon or lower the learning rate"
        )
    if ratio is not None and ratio < FAILS:
        return (
            "not to be trusted in sum: each influence is about right, but rows dropped together "
            "did not do what theirs add up to"
        )
    if probes < FEW:
        return f"too few removals were followed to be sure ({probes}); curate verify is"
    if share > FIRM:
        return "to be trusted for signs and order more than for sizes"
    return "to be trusted: size and order are right on average"


def error_line(error: dict[str, Any], ratio: float | None = None) -> str:
    """How far influences are to be trusted, and by what: from `expected_error`, in loss units."""
    terms = [
        f"{name} {plain(error[name])}"
        for name in ("jump", "propagation", "derivative")
        if name in error
    ]
    return (
        f"{verdict(error['error'], error['signal'], error['probes'], ratio)}. An influence is "
        f"{plain(error['signal'])} on average, and expected to be off by {plain(error['error'])} "
        f"({share_in_words(error['error'], error['signal'])}; {', '.join(terms)}); "
        f"{count(error['probes'], 'removal')} followed exactly"
    )


def worth_line(worth: dict[str, Any]) -> str:
    """What choosing is worth, in one sentence, from `Worth.row`."""
    chosen, answer = worth["chosen"], ANSWERS[worth["answer"]]
    size = _by_how_much(chosen["gain"])
    interval = f"95 % interval of the gain {chosen['low']:.3g} to {chosen['high']:.3g}"
    if worth["share"] == 1:
        best = f"{chosen['rows']:,} rows, the best of {len(worth['tried'])} budgets tried"
        return f"{answer}; all rows are kept. With {best}, loss is {size} ({interval})"
    text = f"{answer}: loss is {size} than on everything ({interval})"
    others = [way for way in worth["against"] if way["name"] in WITH_TARGET]
    best = max(others, key=lambda way: way["gain"], default=chosen)
    if best["gain"] <= chosen["gain"]:
        return text
    return f"{text}; {best['name']} does better still ({best['gain']:.3g} lower)"


def learned_line(worth: dict[str, Any]) -> str | None:
    """That training on everything teaches the model nothing that can be told, if that is so."""
    untrained = worth.get("untrained")
    if untrained is None:
        return None
    least = LEARNED * abs(untrained["loss"])
    if untrained["high"] < 0 and -untrained["gain"] > least:
        return None
    return (
        "on everything does not get the loss on the judging rows below that of the model it starts "
        f"with, {untrained['loss']:.3g}, by more than chance and a thousandth: see that it learns "
        "(learning rate, epochs, labels) before you choose"
    )


def _by_how_much(gain: float) -> str:
    return f"{abs(gain):.3g} {'lower' if gain >= 0 else 'higher'}"


def corrections_line(relabelled: dict[str, Any], worth: dict[str, Any] | None) -> str:
    """What corrected labels were worth, from what is noted of them and `Worth.row`."""
    text = (
        f"{relabelled['changed']:,} of {count(relabelled['rows'], 'label')} in "
        f"{relabelled['file']} differ from what was read"
    )
    against = [] if worth is None else worth["against"]
    read = next((way for way in against if way["name"] == AS_READ), None)
    if read is None:
        return f"{text}; what they are worth was not measured"
    answer = (
        "they pay" if read["high"] < 0 else "they do harm" if read["low"] > 0 else "cannot tell"
    )
    size = _by_how_much(-read["gain"])
    return (
        f"{text}. On everything, {answer}: loss is {size} than with labels as they were read "
        f"(95 % interval of the gain {-read['high']:.3g} to {-read['low']:.3g})"
    )


def labels_line(labels: dict[str, Any]) -> str:
    """How many labels are suspected, and how right that is where noise was planted."""
    text = (
        f"{labels['suspected']:,} of {count(labels['asked'], 'row')} that the judged model did "
        "not train on"
    )
    if labels["suspected"]:
        text += "; to look at them and correct them: curate export"
    if "wrong" not in labels:
        return text
    return f"{text}. {labels['wrong']:,} are wrong, and {labels['right']:,} suggestions right"


def protocol_line(worth: dict[str, Any], candidates: int) -> str:
    """How the worth of choosing was measured, from `Worth.row`; candidates: of the whole run."""
    everything = max(way["rows"] for way in worth["against"] if way["name"] == "everything")
    sample = f", on the sample of {everything:,} rows" if everything < candidates else ""
    halves = (
        "both halves of the target in turn"
        if worth["judging"] == worth["target_rows"]
        else "the half of the target that did not choose"
    )
    return (
        f"each trained from scratch, {worth['limit']:,} steps at most, stopped where its loss on "
        f"the judging rows is lowest; judged by {worth['judging']:,} rows, {halves}{sample}"
    )


def repeats_line(repeats: dict[str, Any]) -> str:
    """Whether scores say anything about unseen target rows, from `Repeatability.row`."""
    weights = repeats.get("evidence")  # a number once, of losses
    told = [
        f"{BESIDE[kind]} ({weight:.2g} to 1)"
        for kind, weight in (weights if isinstance(weights, dict) else {}).items()
        if weight
    ]
    beside = f", with {' and '.join(told)}," if told else ""
    text = (
        f"influences on one half of the target and on the other correlate "
        f"{repeats['correlation']:.2f} ({repeats['low']:.2f} to {repeats['high']:.2f}); scores by "
        f"one half{beside} foretell influences on the other with {repeats['foretold']:.2f}"
    )
    if repeats["low"] <= 0:
        return f"{text}. By themselves they do not repeat: more target rows are needed"
    if repeats["reliability"] < RELIABLE:
        return (
            f"{text}. By themselves they are mostly chance: about {repeats['rows_needed']:,} "
            f"target rows would do, instead of {repeats['target_rows']:,}"
        )
    return text


def prediction_line(prediction: dict[str, Any]) -> str:
    """How well scores of rows outside of a sample are predicted, from `Quality.row`."""
    sample = prediction["sample"]
    text = (
        f"learned from {sample:,} rows and their scores in a training on these alone; for rows "
        f"kept back in turn, predicted scores rank as theirs with {prediction['spearman']:.2f} "
        f"({prediction['low']:.2f} to {prediction['high']:.2f}) and choose "
        f"{prediction['alike']:.0%} alike, {prediction['by_chance']:.0%} by chance; nine in ten "
        f"lie within {prediction['width']:.2g} of what is predicted"
    )
    if not prediction["low"] >= WEAK:
        return (
            f"{text}. Predictions are weak: score more rows (score.sample: {2 * sample}), or all "
            "of them, without score"
        )
    return text


def trust_ratio(windows: pl.DataFrame) -> float | None:
    """Median over the windows of realized over predicted change; None if none was measured."""
    if not {"realized", "predicted"} <= set(windows.columns):
        return None
    ratios = (windows["realized"] / windows["predicted"]).drop_nulls()
    median = ratios.filter(ratios.is_finite()).median()
    return float(median) if isinstance(median, float) else None


def ratio_line(ratio: float) -> str:
    """What the median of realized over predicted change says about the windows."""
    text = f"Realized over predicted, the median of the windows: {ratio:.2f}. "
    if ADDS_UP <= ratio <= 1 / ADDS_UP:
        return text + "That is near 1: influences add up."
    if FAILS <= ratio < ADDS_UP:
        return text + "Rows dropped together did less than one by one, as rows that overlap do."
    return text + (
        "That is far from 1: dropping so much at once does not add up linearly; a shorter "
        "horizon, a lower learning rate or a smaller cut brings it closer."
    )


def share_in_words(error: float, signal: float) -> str:
    """The expected error in percent of the size of an influence."""
    share = _share(error, signal)
    return "under 1 %" if share < 0.01 else f"{100 * share:.0f} %"


def _share(error: float, signal: float) -> float:
    return error / signal if signal else inf


def agreement_verdict(examples: int, certain: float, slope: float) -> str:
    """What scores are good for that were compared with leaving out so many examples.

    certain: the lower end of the interval of Spearman's correlation. slope: of actual over
    predicted changes.
    """
    sizes_hold = 0.8 <= slope <= 1.25
    if examples < FEWEST:
        return f"no verdict: {examples} examples are too few; leave out {FEWEST} or more."
    if not isfinite(certain):
        return "no verdict: the changes do not differ from one another."
    if certain >= 0.9 and sizes_hold:
        return "trustworthy: order and size of the influences are right."
    if certain >= 0.8 and sizes_hold:
        return "good: sizes are right and the order nearly so."
    if certain >= 0.8 and slope > 0:
        size = "too large" if slope < 1 else "too small"
        return f"the order can be trusted; sizes are {size} (slope {slope:.2f})."
    if certain >= 0.5:
        return (
            "a rough order: enough to drop the worst part, not to read single rows. A shorter "
            "horizon, a lower learning rate or selection.jump=exact makes it better."
        )
    return (
        "do not act on these scores. Shorten selection.horizon, lower the learning rate or "
        "use selection.jump=exact, and verify again; or leave out more examples, if the "
        "interval is wide."
    )
