"""The optimizer and schedule sections of a recipe."""

import operator
from functools import reduce
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    Discriminator,
    Field,
    GetPydanticSchema,
    Tag,
    create_model,
    field_validator,
    model_validator,
)

from curate.recipe.section import Section, sections

MOST_RATE = 1e6
LearningRate = Annotated[float, Field(gt=0, le=MOST_RATE)]
Decay = Annotated[float, Field(ge=0, le=1e6)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Coefficients = Annotated[list[float], Field(min_length=3, max_length=3)]

UNMODELED = ("amsgrad", "maximize", "decoupled_weight_decay", "foreach", "fused", "capturable")


class Optimizer(Section):
    """What every optimizer has."""

    kind: str
    """The optimizer of torch.optim; `adamw` if not given."""
    lr: LearningRate
    """The learning rate, before the schedule."""
    weight_decay: Decay = 0.0
    """L2 penalty, added to the gradient."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unmodeled(cls, value: Any) -> Any:
        for key in UNMODELED if isinstance(value, dict) else ():
            if key in value:
                raise ValueError(f"{key} is not modeled; remove it")
        return value


class SGDSection(Optimizer):
    """`torch.optim.SGD`."""

    kind: Literal["sgd"]
    momentum: Beta = 0.0
    """The share of the last step's direction that is kept."""
    dampening: Beta = 0.0
    """The share of the gradient that does not enter the momentum."""
    nesterov: bool = False
    """Whether the momentum looks ahead (Nesterov)."""

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                "nesterov needs a momentum above 0 and a dampening of 0 but got "
                f"momentum {self.momentum} and dampening {self.dampening}"
            )
        return self


class AdamSection(Optimizer):
    """`torch.optim.Adam`: weight decay coupled to the gradient."""

    kind: Literal["adam"]
    lr: LearningRate = 1e-3
    betas: Annotated[list[Beta], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """Decay rates of the averages of the gradient and of its square."""
    eps: Positive = 1e-8
    """Added to the denominator."""


class AdamWSection(AdamSection):
    """`torch.optim.AdamW`: weight decay decoupled from the gradient. The default."""

    kind: Literal["adamw"] = "adamw"  # type: ignore[assignment]
    weight_decay: Decay = 0.01
    """Decay of the weights, apart from the gradient."""


class RMSpropSection(Optimizer):
    """`torch.optim.RMSprop`."""

    kind: Literal["rmsprop"]
    lr: LearningRate = 1e-2
    alpha: Beta = 0.99
    """Decay rate of the average of the squared gradient."""
    eps: Positive = 1e-8
    """Added to the denominator."""
    momentum: Beta = 0.0
    """The share of the last step's direction that is kept."""
    centered: bool = False
    """Whether the gradient's variance takes the place of its mean square."""


class AdagradSection(Optimizer):
    """`torch.optim.Adagrad`."""

    kind: Literal["adagrad"]
    lr: LearningRate = 1e-2
    lr_decay: Annotated[float, Field(ge=0)] = 0.0
    """How fast the learning rate falls: divided by 1 + step x lr_decay."""
    initial_accumulator_value: Annotated[float, Field(ge=0)] = 0.0
    """What the sums of squared gradients start at."""
    eps: Positive = 1e-10
    """Added to the denominator."""


class AdafactorSection(Optimizer):
    """`torch.optim.Adafactor`."""

    kind: Literal["adafactor"]
    lr: LearningRate = 1e-2
    beta2_decay: Annotated[float, Field(le=0)] = -0.8
    """The exponent by which the decay rate of squared gradients approaches 1."""
    eps: list[float | None] = [None, 1e-3]
    """Added to squared gradients, and the least scale of a parameter; a first of null is that of
    `training.dtype`."""
    d: Annotated[float, Field(ge=1)] = 1.0
    """The root mean square above which an update is clipped."""
    weight_decay: Decay = 0.0
    """Decay of the weights, apart from the gradient."""

    @field_validator("eps", mode="wrap")
    @classmethod
    def _pair(cls, value: Any, handler: Any) -> Any:
        try:
            first, second = pair = handler(value)
            if (first is None or first > 0) and second is not None and second >= 0:
                return pair
        except ValueError:  # not numbers, or not two
            pass
        raise ValueError(
            "must be two numbers, the first above 0 or null for that of the dtype, "
            f"but got {value!r}"
        )


class MuonSection(Optimizer):
    """`torch.optim.Muon`, for parameters of two dimensions."""

    kind: Literal["muon"]
    lr: LearningRate = 1e-3
    momentum: Beta = 0.95
    """Decay rate of the average of the gradient."""
    nesterov: bool = True
    """Whether the momentum looks ahead (Nesterov)."""
    weight_decay: Decay = 0.1
    """Decay of the weights, apart from the gradient."""
    ns_coefficients: Coefficients = [3.4445, -4.7750, 2.0315]
    """The three coefficients of the Newton-Schulz iteration."""
    ns_steps: Annotated[int, Field(ge=0, lt=100)] = 5
    """Iterations of Newton-Schulz."""
    eps: Positive = 1e-7
    """Added to the norm that the gradient is divided by."""
    adjust_lr_fn: Literal["original", "match_rms_adamw"] = "original"
    """How the learning rate is scaled by a matrix's shape."""


KINDS: dict[str, type[Optimizer]] = {
    get_args(section.model_fields["kind"].annotation)[0]: section
    for section in sections(Optimizer)[1:]
}


class Group(Section):
    """Some of the parameters."""

    match: Annotated[list[str], Field(min_length=1)]
    """Names of parameters, or shell patterns; the first group that matches counts."""


class SharedGroup(Group):
    """A group with the base optimizer, but another learning rate or weight decay."""

    lr: LearningRate | None = None
    """The learning rate of these parameters; the base optimizer's if not given."""
    weight_decay: Decay | None = None
    """The weight decay of these parameters; the base optimizer's if not given."""

    @model_validator(mode="before")
    @classmethod
    def _other_settings_need_a_kind(cls, value: Any) -> Any:
        settings = {key for kind in KINDS.values() for key in kind.model_fields}
        for key in value if isinstance(value, dict) else ():
            if key in settings - cls.model_fields.keys():
                raise ValueError(
                    f"{key} needs a `kind` beside it: a group without one has the base "
                    "optimizer's settings but for lr and weight_decay"
                )
        return value


class OwnGroup(Group, Optimizer):
    """A group with another optimizer, which has none of the base optimizer's settings."""


def _by_kind(extra: type[Section]) -> dict[str, Any]:
    """Every optimizer's section joined with `extra`, by its tag."""
    return {
        f"~{name}": create_model(
            f"{kind.__name__}{extra.__name__}", __base__=(kind, extra), __doc__=kind.__doc__
        )
        for name, kind in KINDS.items()
    }


def _any_of(tags: dict[str, Any], otherwise: str) -> GetPydanticSchema:
    """The section that the value's `kind` names; the one tagged `otherwise` if it has none."""

    def tag_of(value: Any) -> str:
        if isinstance(value, Section):
            return next((tag for tag, section in tags.items() if type(value) is section), "")
        if not isinstance(value, dict) or "kind" not in value:
            return otherwise
        return f"~{value['kind']}" if str(value["kind"]) in KINDS else ""

    tagged = [Annotated[section, Tag(tag)] for tag, section in tags.items()]
    *others, last = KINDS
    union: Any = Annotated[
        reduce(operator.or_, tagged),
        Discriminator(
            tag_of,
            custom_error_type="optimizer_kind",
            custom_error_message=f"kind must be {', '.join(others)} or {last}; "
            "no other optimizer is modeled",
        ),
    ]
    return GetPydanticSchema(lambda _, handler: handler.generate_schema(union))


GROUPS = {"~": SharedGroup} | _by_kind(OwnGroup)
AnyGroup = Annotated[SharedGroup | OwnGroup, _any_of(GROUPS, otherwise="~")]


class BaseOptimizer(Optimizer):
    """The optimizer of every parameter that no group matches."""

    groups: list[AnyGroup] = []
    """Parameters with other settings, or another optimizer."""


BASES = _by_kind(BaseOptimizer)
AnyOptimizer = Annotated[BaseOptimizer, _any_of(BASES, otherwise="~adamw")]


class ScheduleSection(Section):
    """How the learning rate moves over the run."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    """The learning rate after warm-up: constant, or falling to 0 by the end."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the learning rate rises to its value."""
