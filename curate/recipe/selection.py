"""The selection section of a recipe: how candidates are valued, and how many are kept."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from curate.recipe.section import Count, Section, in_words

PolicyName = Literal["look_ahead", "random", "loss", "knn_shapley"]


def _tokens(value: Any) -> Any:
    """A number of tokens as an int, 2e6 too, and a share of them as it is."""
    whole = isinstance(value, float) and value > 1 and value.is_integer()
    return int(value) if whole else value


class Keep(Section):
    """The budget: exactly one of the five.

    auto: it is found, by retraining on several budgets and on everything, and judging them.
    tokens: that the loss is about. A number is the most that is kept; a share of all of them,
    between 0 and 1, is met to the nearest row. 1 could be either and is refused.
    """

    auto: Literal[True] | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    count: Count | None = None
    tokens: Annotated[
        Annotated[int, Field(ge=2, le=10**15)] | Annotated[float, Field(gt=0, lt=1)] | None,
        BeforeValidator(_tokens),
        in_words(
            "must be a number of tokens, at least 2, or a share of them above 0 and below 1 "
            "but got {got}"
        ),
    ] = None
    threshold: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        return {"auto": True} if value == "auto" else value

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
    """How candidates are valued and how many are kept.

    epochs: of the run whose influences are taken, from its beginning; of a `full` horizon, all.
    judge: whether what is kept is retrained on and judged by target rows that did not choose it.
    per: whether the losses and influences that scores are made of are those of the row, or of
    the row by its tokens; token by default where `keep` counts tokens, else example.
    weights: of several targets in the mean of their losses; all the same if not given.
    """

    policy: PolicyName = "look_ahead"
    horizon: Annotated[
        Count | Literal["full"],
        in_words("must be at least 1 but got {got}; use `full` for the whole run"),
    ] = 8
    keep: Keep = Keep(auto=True)
    epochs: Count = 2
    judge: bool = True
    per: Literal["example", "token"] = "example"
    weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    group_by: str | None = None
    rounds: Count = 1
    removal: Literal["renormalised", "fixed"] = "renormalised"
    jump: Literal["linear", "exact"] = "linear"
    probing: Annotated[float, Field(ge=0, le=100)] = 0.2
    neighbors: Count = 5

    @model_validator(mode="before")
    @classmethod
    def _per_token_where_tokens_are_kept(cls, given: Any) -> Any:
        keep = given.get("keep") if isinstance(given, dict) else None
        if isinstance(keep, dict) and keep.get("tokens") is not None:
            return {"per": "token"} | given
        return given

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
