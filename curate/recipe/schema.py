"""The recipe: every section, and the checks between sections. Loads no torch.

What only the data or the model can tell (columns, names of parameters) is checked where they are
read.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from curate.recipe.data import Data
from curate.recipe.models import Factory, Mlp, Model, Pretrained
from curate.recipe.names import OBJECTIVES, POLICIES, find_objective
from curate.recipe.optimizers import BASES, AnyOptimizer, ScheduleSection
from curate.recipe.section import NO_REPEATS, Count, Section, Seed, in_words, one_of
from curate.recipe.selection import Selection
from curate.recipe.target import GOALS, TargetSection
from curate.recipe.tune import Tune

ON_TEXT = [name for name, objective in OBJECTIVES.items() if objective.reads == "text"]
CLASSIFIERS = [name for name, objective in OBJECTIVES.items() if objective.label == "classes"]
OTHERS = ("everything", *(name for name, policy in POLICIES.items() if not policy.goes_back))
"""What a selection may be compared with: policies that cost little, and keeping all."""


class TrainingSection(Section):
    """The run that candidates are scored along."""

    epochs: Count = 1
    """Passes over the candidates."""
    batch_size: Count = 32
    """Candidates per step."""
    micro_batch: Count | None = None
    """Rows of a step whose graph is held at once; all if not given. It changes memory, not results.
    """
    optimizer: AnyOptimizer = Field(default_factory=BASES["~adamw"])
    """What moves the parameters."""
    schedule: ScheduleSection = ScheduleSection()
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
    beta: Annotated[float, Field(gt=0)] | None = None
    """How much is lost where `preference` moves away from the reference; 0.1 if not given."""


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
    against: Annotated[list[Annotated[str, one_of(OTHERS)]], NO_REPEATS] = ["everything", "random"]
    """Other ways to choose as many rows, to compare with. With none of them, `[]`, what was kept is
    still measured on the test rows, if there are any."""


class Score(Section):
    """Score a sample of the candidates, and predict the scores of the others."""

    sample: Annotated[int, Field(ge=100)]
    """The number of candidates, drawn at random, that are scored by training on them; a small model
    learns their scores, and predicts those of all candidates with an interval."""


class Recipe(Section):
    """From data to a selection."""

    data: Data
    """Where rows come from, and what they are."""
    model: Model = Field(default_factory=Mlp)
    """What is trained."""
    objective: Annotated[str, Field(min_length=1)] = "classification"
    """The loss: `classification`, `regression`, `causal_lm`, `sequence_classification`,
    `preference` (DPO: the model as it starts is the reference), or a function of your own,
    `package.module:name`."""
    training: TrainingSection = Field(default_factory=TrainingSection)
    """The run that candidates are scored along."""
    trajectory: Trajectory = Trajectory()
    """What is kept of the run to go back through it."""
    target: TargetSection | None = None
    """What influences are about; the loss of training on the validation rows if not given."""
    selection: Selection = Selection()
    """How candidates are valued and how many are kept."""
    score: Score | None = None
    """Which candidates are scored; all if not given."""
    evaluation: Evaluation | None = None
    """Retraining on what was kept beside other choices, on the test rows; none if not given."""
    tune: Tune | None = None
    """What `curate tune` may try."""

    @field_validator("objective")
    @classmethod
    def _known_objective(cls, value: str) -> str:
        if value not in OBJECTIVES and ":" not in value:
            raise ValueError(
                f"must be {', '.join(OBJECTIVES)} or package.module:name but got {value!r}"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for problem in chain(
            self._training_problems(),
            self._missing_data(),
            self._label_problems(),
            self._token_problems(),
            self._weight_problems(),
            self._text_problems(),
            self._score_problems(),
            self._target_problems(),
        ):
            raise ValueError(problem)
        return self

    def code(self) -> list[str]:
        """What is run of code that is not ours, by key: a model, an objective, files of a model."""
        named = []
        if isinstance(self.model, Factory):
            named.append(f"model.factory {self.model.factory}")
        if isinstance(self.model, Pretrained) and self.model.trust_remote_code:
            named.append(f"model.trust_remote_code for {self.model.pretrained}")
        if self.objective not in OBJECTIVES:
            named.append(f"objective {self.objective}")
        if self.target is not None and ":" in (self.target.loss or ""):
            named.append(f"target.loss {self.target.loss}")
        return named

    def compared(self) -> Evaluation | None:
        """The evaluation that is made: none without anything to compare and a test set."""
        nothing = self.evaluation is not None and not self.evaluation.against
        return None if nothing and self.data.test is None else self.evaluation

    def _policies(self) -> list[str]:
        """The policies that are asked, in the order of their table."""
        against = self.evaluation.against if self.evaluation else []
        return [name for name in POLICIES if name in (self.selection.policy, *against)]

    def _training_problems(self) -> Iterator[str]:
        training = self.training
        if training.precision != "float32" and training.dtype != "float32":
            yield (
                f"training.precision: {training.precision} is for dtype float32; remove one of "
                "the two"
            )
        if training.checkpointing and not isinstance(self.model, Pretrained):
            yield (
                "training.checkpointing: is for pretrained models; one of your own does it "
                "itself, with torch.utils.checkpoint"
            )
        if training.checkpointing and self.selection.jump == "exact":
            yield (
                "training.checkpointing: selection.jump exact goes example by example, where "
                "layers cannot be computed again; use jump linear, or leave checkpointing out"
            )
        if training.beta is not None and not find_objective(self.objective).pairs:
            yield f"training.beta: is for objective preference but got {self.objective}"

    def _missing_data(self) -> Iterator[str]:
        if self.data.validation is None:
            for name in self._policies():
                if POLICIES[name].validation:
                    yield f"data.validation: is required: policy {name} scores by it"
            if self.selection.keep.auto:
                yield "data.validation: is required by selection.keep auto, which is judged on it"
        if self.compared() is not None and self.data.test is None:
            yield "data.test: is required by evaluation; give a source or {fraction: 0.2}"

    def _label_problems(self) -> Iterator[str]:
        objective = find_objective(self.objective)
        if self.data.columns.label is None and objective.label in ("classes", "numbers"):
            yield f"data.columns.label: is required by objective {self.objective}"
        on_features = [name for name in CLASSIFIERS if name not in ON_TEXT]
        for name in self._policies():
            if POLICIES[name].labels and self.objective not in on_features:
                yield (
                    f"selection.policy: {name} needs class labels and fixed features, so "
                    f"objective {' or '.join(on_features)}, but got {self.objective}"
                )
        for key in ("label_noise", "relabelled"):
            if getattr(self.data, key) is not None and self.objective not in CLASSIFIERS:
                yield (
                    f"data.{key}: needs class labels, so objective {' or '.join(CLASSIFIERS)}, "
                    f"but got {self.objective}"
                )

    def _token_problems(self) -> Iterator[str]:
        """Tokens are counted only where a loss is a sum over them."""
        if find_objective(self.objective).tokens:
            return
        counting = " or ".join(name for name, objective in OBJECTIVES.items() if objective.tokens)
        why = (
            f"needs losses that are sums over tokens, so objective {counting}; in "
            f"{self.objective} every row counts once"
        )
        if self.selection.keep.tokens is not None:
            yield f"selection.keep.tokens: {why}; use fraction or count"
        if self.selection.per == "token":
            yield f"selection.per: token {why}; use example"

    def _weight_problems(self) -> Iterator[str]:
        """Weights are for the mean over several targets, if there are several."""
        weights, validation = self.selection.weights, self.data.validation
        if weights is None:
            return
        names = sorted(validation) if isinstance(validation, dict) else ["validation"]
        if len(names) < 2:
            yield (
                "selection.weights: are for several targets; name them in data.validation, "
                "{one: PATH, other: PATH}, or leave them out"
            )
        if sorted(weights) != names:
            yield (
                f"selection.weights: must be of the targets {', '.join(names)}, each once, but "
                f"got {', '.join(sorted(weights)) or 'none'}"
            )
        policy = POLICIES[self.selection.policy]
        if policy.validation and not policy.goes_back:
            yield (
                f"selection.weights: are for influences; {self.selection.policy} pools the rows "
                "of all targets, so leave them out"
            )

    def _score_problems(self) -> Iterator[str]:
        """Only influences are worth predicting."""
        policy = self.selection.policy
        if self.score is not None and not POLICIES[policy].goes_back:
            yield (
                f"score.sample: is for influences; {policy} values all rows at little cost, so "
                "leave score out"
            )
        if self.score is not None and find_objective(self.objective).pairs:
            yield (
                "score.sample: predicts from a row alone, and preferences are about a reference, "
                "too; leave score out"
            )

    def _target_problems(self) -> Iterator[str]:
        """A target of one's own is for influences, and `tune` compares by the loss of training."""
        if self.target is None:
            return
        if self.data.validation is None:
            yield "target: is about the rows of data.validation; give it"
        if not POLICIES[self.selection.policy].goes_back:
            yield f"target: is for influences; {self.selection.policy} does not look at any"
        if self.target.loss in GOALS and self.objective not in CLASSIFIERS:
            yield (
                f"target.loss: {self.target.loss} is for objective {' or '.join(CLASSIFIERS)}, but "
                f"got {self.objective}"
            )
        if self.tune is not None:
            yield "tune: compares by the loss of training; leave target out, or tune"

    def _text_problems(self) -> Iterator[str]:
        """Text columns, a pretrained model, and an objective for both go together."""
        objective, form = find_objective(self.objective), self.data.columns.form
        if objective.reads == "text":
            if not isinstance(self.model, Pretrained):
                yield (
                    f"model: objective {self.objective} needs `pretrained: PATH`, a model and "
                    "tokenizer of transformers"
                )
            paired = form == "chosen"
            if form == "features" or (objective.pairs and not paired):
                needed = "chosen" if objective.pairs else "text"
                yield f"data.columns.{needed}: is required by objective {self.objective}"
            elif paired != objective.pairs or (objective.label is not None and form != "text"):
                yield (
                    f"data.columns.{form}: is for objective {' or '.join(_of_form(form))}; "
                    f"{self.objective} needs text"
                )
            return
        if isinstance(self.model, Pretrained):
            yield (
                f"objective: a pretrained model has {' or '.join(ON_TEXT)} but got {self.objective}"
            )
        if form != "features":
            yield (
                f"data.columns.features: is required by objective {self.objective}; {form} is for "
                f"{' and '.join(_of_form(form))}"
            )


def _of_form(form: str) -> list[str]:
    """The objectives for columns of text of a form."""
    named = {name: OBJECTIVES[name] for name in ON_TEXT}
    return [
        name
        for name, facts in named.items()
        if facts.pairs == (form == "chosen") and (form == "text" or facts.label is None)
    ]
