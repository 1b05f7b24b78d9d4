"""The optimizer and schedule sections of a recipe."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from curate.recipe.section import Section

LearningRate = Annotated[float, Field(gt=0, le=1e6)]
Decay = Annotated[float, Field(ge=0, le=1e6)]
Beta = Annotated[float, Field(ge=0, lt=1)]

UNMODELLED = ("amsgrad", "maximize", "decoupled_weight_decay", "foreach", "fused", "capturable")


class Group(Section):
    """Parameters with settings of their own: names or shell patterns; the first match counts."""

    match: Annotated[list[str], Field(min_length=1)]
    lr: LearningRate | None = None
    weight_decay: Decay | None = None


class Optimizer(Section):
    """What every optimizer has."""

    groups: list[Group] = []

    @model_validator(mode="before")
    @classmethod
    def _refuse_unmodelled(cls, value: Any) -> Any:
        for key in UNMODELLED if isinstance(value, dict) else ():
            if key in value:
                raise ValueError(f"{key} is not modelled; remove it")
        return value


class SGDSection(Optimizer):
    """`torch.optim.SGD`."""

    kind: Literal["sgd"]
    lr: LearningRate
    momentum: Beta = 0.0
    dampening: Beta = 0.0
    nesterov: bool = False
    weight_decay: Decay = 0.0

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
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Decay = 0.0


class AdamWSection(Optimizer):
    """`torch.optim.AdamW`: weight decay decoupled from the gradient. The default."""

    kind: Literal["adamw"] = "adamw"
    lr: LearningRate = 1e-3
    betas: Annotated[list[Beta], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Decay = 0.01


class RMSpropSection(Optimizer):
    """`torch.optim.RMSprop`."""

    kind: Literal["rmsprop"]
    lr: LearningRate = 1e-2
    alpha: Beta = 0.99
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Decay = 0.0
    momentum: Beta = 0.0
    centered: bool = False


class AdagradSection(Optimizer):
    """`torch.optim.Adagrad`."""

    kind: Literal["adagrad"]
    lr: LearningRate = 1e-2
    lr_decay: Annotated[float, Field(ge=0)] = 0.0
    weight_decay: Decay = 0.0
    initial_accumulator_value: Annotated[float, Field(ge=0)] = 0.0
    eps: Annotated[float, Field(gt=0)] = 1e-10


def _kind(value: Any) -> Any:
    kind = value.get("kind", "adamw") if isinstance(value, dict) else getattr(value, "kind", "")
    return f"~{kind}"


OptimizerSection = Annotated[
    Annotated[SGDSection, Tag("~sgd")]
    | Annotated[AdamSection, Tag("~adam")]
    | Annotated[AdamWSection, Tag("~adamw")]
    | Annotated[RMSpropSection, Tag("~rmsprop")]
    | Annotated[AdagradSection, Tag("~adagrad")],
    Discriminator(
        _kind,
        custom_error_type="optimizer_kind",
        custom_error_message="kind must be sgd, adam, adamw, rmsprop or adagrad; "
        "no other optimizer is modelled",
    ),
]


class Schedule(Section):
    """How the learning rate moves over the run."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
