"""The recipe: every key, its type, its default. Loads no torch.

Keys mean what DESIGN and the README say; cross-checks between sections are at
the end. Whatever only the data or the model can tell (columns, names of
parameters) is checked where they are read.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from curate.recipe.data import Data
from curate.recipe.models import Mlp, Model, Pretrained
from curate.recipe.optimizers import AnyOptimizer, Schedule, default_optimizer
from curate.recipe.section import NO_REPEATS, Count, Section, Seed, in_words
from curate.recipe.selection import Selection
from curate.recipe.tune import Tune

ON_FEATURES = ("classification", "regression")
ON_TEXT = ("causal_lm", "sequence_classification")
CLASSES = ("classification", "sequence_classification")
LABELED = (*CLASSES, "regression")


class Training(Section):
    """The run that candidates are scored along."""

    epochs: Count = 1
    """Passes over the candidates."""
    batch_size: Count = 32
    """Candidates per step."""
    micro_batch: Count | None = None
    """Rows of a step whose graph is held at once; all if not given. It changes memory, not results.
    """
    optimizer: AnyOptimizer = Field(default_factory=default_optimizer)
    """What moves the parameters."""
    schedule: Schedule = Schedule()
    """How the learning rate moves over the run."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """The gradient norm above which a step's gradient is scaled down; no clipping if not given."""
    seed: Seed = 0
    """The seed of the first weights, of the order of rows and of dropout."""
    dtype: Literal["float32", "float64"] = "float32"
    """The type of parameters and optimizer state."""
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    """How passes are computed: tf32 rounds matrix products of float32 to 10 bits on a GPU that can;
    bf16 is bfloat16 autocast, except for the way back, which is then in TF32."""
    checkpointing: bool = False
    """Whether layers of a pretrained model are computed again on the way back instead of kept."""


Memory = Annotated[str, Field(pattern=r"^[0-9]{1,12}(\.[0-9]+)?\s?(KiB|MiB|GiB)$")]


class Trajectory(Section):
    """What is kept of the run to go back through it."""

    snapshots: Annotated[
        Count | Memory,
        in_words("must be a number of states, at least 1, or memory such as 2GiB but got {got}"),
    ] = "1GiB"
    """Memory for states and gradients of the run (`2GiB`), or a number of states, each with its
    gradient."""
    disk: Memory | None = None
    """Room for more states in files; none if null. What fits in neither is computed again."""
    gradients: Memory = "256MiB"
    """Memory for gradients example by example, which `jump: exact` needs."""


class Evaluation(Section):
    """Retrain from scratch on what was kept, and on what other ways would keep."""

    seeds: Annotated[list[Seed], Field(min_length=1), NO_REPEATS] = [0, 1, 2]
    """A retraining for each seed."""
    against: Annotated[list[Literal["everything", "random", "loss", "knn_shapley"]], NO_REPEATS] = [
        "everything",
        "random",
    ]
    """Other ways to choose as many rows, to compare with."""


class Recipe(Section):
    """From data to a selection."""

    data: Data
    """Where rows come from, and what they are."""
    model: Model = Field(default_factory=Mlp)
    """What is trained."""
    objective: Annotated[str, Field(min_length=1)] = "classification"
    """The loss: `classification`, `regression`, `causal_lm`, `sequence_classification`, or a
    function of your own, `package.module:name`."""
    training: Training = Field(default_factory=Training)
    """The run that candidates are scored along."""
    trajectory: Trajectory = Trajectory()
    """What is kept of the run to go back through it."""
    selection: Selection = Selection()
    """How candidates are valued and how many are kept."""
    evaluation: Evaluation | None = None
    """Retraining on what was kept beside other choices, on the test rows; none if not given."""
    tune: Tune | None = None
    """What `curate tune` may try."""

    @field_validator("objective")
    @classmethod
    def _known_objective(cls, value: str) -> str:
        if value not in ON_FEATURES + ON_TEXT and ":" not in value:
            raise ValueError(
                f"must be {', '.join(ON_FEATURES + ON_TEXT)} or package.module:name "
                f"but got {value!r}"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        policies = {self.selection.policy, *(self.evaluation.against if self.evaluation else [])}
        label = self.data.columns.label
        problems = [
            (
                self.training.precision != "float32" and self.training.dtype != "float32",
                f"training.precision: {self.training.precision} is for dtype float32; remove one "
                "of the two",
            ),
            (
                self.training.checkpointing and not isinstance(self.model, Pretrained),
                "training.checkpointing: is for pretrained models; one of your own does it "
                "itself, with torch.utils.checkpoint",
            ),
            (
                self.training.checkpointing and self.selection.jump == "exact",
                "training.checkpointing: selection.jump exact goes example by example, where "
                "layers cannot be computed again; use jump linear, or leave checkpointing out",
            ),
            (
                self.data.validation is None and policies & {"look_ahead", "knn_shapley"},
                "data.validation: is required: policy "
                f"{'look_ahead' if 'look_ahead' in policies else 'knn_shapley'} scores by it",
            ),
            (
                self.data.validation is None and bool(self.selection.keep.auto),
                "data.validation: is required by selection.keep auto, which is judged on it",
            ),
            (
                self.evaluation is not None and self.data.test is None,
                "data.test: is required by evaluation; give a source or {fraction: 0.2}",
            ),
            (
                label is None and self.objective in LABELED,
                f"data.columns.label: is required by objective {self.objective}",
            ),
            (
                "knn_shapley" in policies and self.objective != "classification",
                "selection.policy: knn_shapley needs class labels and fixed features, so objective "
                f"classification, but got {self.objective}",
            ),
            (
                self.data.label_noise is not None and self.objective not in CLASSES,
                "data.label_noise: needs class labels, so objective classification or "
                f"sequence_classification, but got {self.objective}",
            ),
            *self._token_problems(),
            *self._target_problems(),
            *self._text_problems(),
        ]
        for wrong, message in problems:
            if wrong:
                raise ValueError(message)
        return self

    def _token_problems(self) -> list[tuple[bool, str]]:
        """Tokens are counted only where a loss is a sum over them."""
        counted, selection = self.objective == "causal_lm", self.selection
        why = f"needs losses that are sums over tokens, so objective causal_lm; in {self.objective}"
        return [
            (
                not counted and selection.keep.tokens is not None,
                f"selection.keep.tokens: {why} every row counts once; use fraction or count",
            ),
            (
                not counted and selection.per == "token",
                f"selection.per: token {why} every row counts once; use example",
            ),
        ]

    def _target_problems(self) -> list[tuple[bool, str]]:
        """How several targets are made one, if there are several."""
        selection, validation = self.selection, self.data.validation
        names = sorted(validation) if isinstance(validation, dict) else ["validation"]
        return [
            (
                selection.weights is not None and len(names) < 2,
                "selection.weights: are for several targets; name them in data.validation, "
                "{one: PATH, other: PATH}, or leave them out",
            ),
            (
                selection.weights is not None and sorted(selection.weights) != names,
                f"selection.weights: must be of the targets {', '.join(names)}, each once, but "
                f"got {', '.join(sorted(selection.weights or {})) or 'none'}",
            ),
            (
                selection.weights is not None and selection.policy == "knn_shapley",
                "selection.weights: are for influences; knn_shapley pools the rows of all targets, "
                "so leave them out",
            ),
        ]

    def _text_problems(self) -> list[tuple[bool, str]]:
        """What goes together: text columns, a pretrained model, and an objective for both."""
        on_text, columns = self.objective in ON_TEXT, self.data.columns
        return [
            (
                on_text and not isinstance(self.model, Pretrained),
                f"model: objective {self.objective} needs `pretrained: PATH`, "
                "a model and tokenizer of transformers",
            ),
            (
                not on_text and isinstance(self.model, Pretrained),
                f"objective: a pretrained model has {' or '.join(ON_TEXT)} but got "
                f"{self.objective}",
            ),
            (
                on_text and columns.form == "features",
                f"data.columns.text: is required by objective {self.objective}",
            ),
            (
                not on_text and columns.form != "features",
                f"data.columns.features: is required by objective {self.objective}; "
                f"{columns.form} is for {' and '.join(ON_TEXT)}",
            ),
            (
                self.objective == "sequence_classification" and columns.form != "text",
                f"data.columns.{columns.form}: is for objective causal_lm; "
                "sequence_classification needs text",
            ),
        ]
