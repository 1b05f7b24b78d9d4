"""The selection section of a recipe: how candidates are valued, and how many are kept."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from curate.recipe.names import POLICIES
from curate.recipe.section import Count, Section, in_words, one_of


def _tokens(value: Any) -> Any:
    """A number of tokens as an int, 2e6 too, and a share of them as it is."""
    whole = isinstance(value, float) and value > 1 and value.is_integer()
    return int(value) if whole else value


class Keep(Section):
    """The budget: exactly one of the five. `auto` alone is short for {auto: true}, a number between
    0 and 1 for that fraction.

    A number of tokens of 1 could be one token or all of them, and is refused.
    """

    auto: Literal[True] | None = None
    """Find the budget: retrain on several, everything among them, and judge them (`keep: auto`)."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """The share of candidates to keep."""
    count: Count | None = None
    """The number of candidates to keep."""
    tokens: Annotated[
        Annotated[int, Field(ge=2, le=10**15)] | Annotated[float, Field(gt=0, lt=1)] | None,
        BeforeValidator(_tokens),
        in_words(
            "must be a number of tokens, at least 2, or a share of them above 0 and below 1 "
            "but got {got}"
        ),
    ] = None
    """Tokens to keep that the loss is about: a number is the most, a share between 0 and 1 of all
    of them is met to the nearest row."""
    threshold: float | None = None
    """The least score of a candidate that is kept."""

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        if value == "auto" or isinstance(value, dict | Keep):
            return {"auto": True} if value == "auto" else value
        if isinstance(value, float) and 0 < value < 1:
            return {"fraction": value}
        count = value if type(value) is int and value > 1 else 500
        raise ValueError(
            f"must be auto, a share above 0 and below 1, or a mapping such as {{count: {count}}} "
            f"but got {value!r}"
        )

    @model_serializer(mode="wrap")
    def _as_word(self, handler: SerializerFunctionWrapHandler) -> Any:
        return "auto" if self.auto else handler(self)

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        ways = (self.auto, self.fraction, self.count, self.tokens, self.threshold)
        if sum(way is not None for way in ways) != 1:
            raise ValueError("give exactly one of auto, fraction, count, tokens and threshold")
        return self


class Selection(Section):
    """How candidates are valued and how many are kept."""

    policy: Annotated[str, one_of(POLICIES)] = "look_ahead"
    """What values candidates: their influence on the target's loss, chance, their own loss, or what
    KNN-Shapley makes of them."""
    horizon: Annotated[
        Count | Literal["full"],
        in_words("must be at least 1 but got {got}; use `full` for the whole run"),
    ] = 8
    """The number of steps K that are looked ahead; `full` for the whole run."""
    keep: Keep = Keep(auto=True)
    """The budget: auto, or exactly one of fraction, count, tokens and threshold."""
    epochs: Count = 2
    """Epochs from the run's beginning whose influences are taken; a `full` horizon takes all."""
    judge: bool = True
    """Whether what is kept is retrained on and judged by target rows that did not choose it."""
    per: Literal["example", "token"] = "example"
    """Whether scores are of a row or of a row by its tokens; token by default where `keep` counts
    tokens."""
    weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """The weight of every target in the mean of their losses, if there are several; all the same if
    not given."""
    group_by: str | None = None
    """The column whose values each keep their share of the budget."""
    rounds: Count = 1
    """How often every window is valued, each time with weights that have moved towards the last
    value."""
    removal: Literal["renormalised", "fixed"] = "renormalised"
    """Whether a step without a row divides by the rows that are left (renormalised) or by all
    (fixed)."""
    jump: Literal["linear", "exact"] = "linear"
    """Whether a row's removal is followed to first order through the optimizer (linear) or put
    through its rule (exact)."""
    probing: Annotated[float, Field(ge=0, le=100)] = 0.2
    """The share of the cost of scoring that goes into estimating its error; above 0, five removals
    are followed at least, if there are as many windows."""
    neighbors: Count = 5
    """The number of neighbors of KNN-Shapley."""

    @model_validator(mode="before")
    @classmethod
    def _per_token_where_tokens_are_kept(cls, raw: Any) -> Any:
        keep = raw.get("keep") if isinstance(raw, dict) else None
        if isinstance(keep, dict) and keep.get("tokens") is not None:
            return {"per": "token"} | raw
        return raw

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.keep.auto and not self.judge:
            raise ValueError("keep: auto is found by judging; name a budget, or use judge: true")
        if self.group_by is not None and self.keep.threshold is not None:
            raise ValueError(
                "group_by shares out a fraction, a count or tokens; it has no use for a threshold"
            )
        if self.weights and not any(self.weights.values()):
            raise ValueError("weights must not all be 0")
        return self
