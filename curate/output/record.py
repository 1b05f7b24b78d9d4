"""What of a run's records is shown, checked as it is read."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from curate.selection.policies import Repeatability


class Metric(BaseModel):
    """A metric of retrained models, one value per seed."""

    mean: float
    std: float
    values: list[float]


class Retrained(BaseModel):
    """One way of choosing, retrained from scratch; its metrics by name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Metric]

    trained_on: str
    rows: int
    tokens: int | None = None
    noise_left: float | None = None

    @property
    def metrics(self) -> dict[str, Metric]:
        """The loss first."""
        return self.__pydantic_extra__


class ExpectedError(BaseModel):
    """Of the influences of a run, in loss units, see `ErrorProxy`."""

    probes: int
    signal: float
    error: float
    jump: float
    propagation: float
    derivative: float = 0.0


class Way(BaseModel):
    """One way to train, beside training on everything, see `Compared`."""

    name: str
    rows: int
    share: float | None
    loss: float
    last: float
    metrics: dict[str, float]
    gain: float
    error: float
    judging: int
    low: float
    high: float


class WorthOf(BaseModel):
    """What choosing is worth, see `Worth`."""

    answer: Literal["pays", "does not pay", "cannot tell"]
    share: float | None
    chosen: Way
    tried: list[Way]
    against: list[Way]
    judging: int
    target_rows: int
    steps: int
    limit: int


class Noise(BaseModel):
    """Labels that were made wrong on purpose."""

    planted: int
    kept: int
    auroc: float


class Tokens(BaseModel):
    """Tokens that losses are sums over."""

    candidates: int
    kept: int


class Part(BaseModel):
    """The rows with one value of a column, or a text length."""

    value: str
    candidates: int
    kept: int


class Provenance(BaseModel):
    """What of provenance.json is shown."""

    policy: str = "look_ahead, in a training loop"
    steps: int | None = None
    device: str | None = None
    seconds: dict[str, float] = {}
    sources: dict[str, Any] = {}
    versions: dict[str, str] = {}
    git_commit: str | None = None
    truncated: dict[str, int] = {}
    left_out: dict[str, int] = {}
    tokens: Tokens | None = None
    error: ExpectedError | None = None
    worth: WorthOf | None = None
    cost: float | None = None
    repeats: Repeatability | None = None
    noise: Noise | None = None
    evaluation: list[Retrained] = []
    composition: dict[str, list[Part]] = {}


class Verification(BaseModel):
    """What of verify.json is shown."""

    examples: int
    verdict: str
