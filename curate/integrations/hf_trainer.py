"""Look-ahead in Hugging Face's Trainer: a mixin."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from curate.datasets import IGNORED, REFERENCE, Pairs, Sequences, as_collated, is_flattened
from curate.datasets.batches import to_device
from curate.errors import OptionError
from curate.influence import Target
from curate.integrations.columns import WithColumns
from curate.integrations.loader import as_targets
from curate.integrations.loop import LiveLoop, one_mean
from curate.integrations.options import WEIGHTS, Options
from curate.integrations.training import LiveTraining
from curate.integrations.window import WindowReport
from curate.models import (
    LabelsObjective,
    Objective,
    Preference,
    as_objective,
    find_shift,
)
from curate.models.randomness import undisturbed, usual_sources
from curate.rules import unwrap
from curate.runtime.files import write_whole

STATE = "look_ahead_{}.pt"
"""The state of look-ahead in a checkpoint of the Trainer's, of each process its own."""
TARGETS, WEIGHED = "look-ahead target {}", "look_ahead_weights"
USUAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "label_smoothing_factor": (0,),
        "loss_type": ("nll", "sigmoid", ["sigmoid"]),
        "loss_weights": (None, [1.0]),
        "f_divergence_type": ("reverse_kl",),
        "ld_alpha": (None,),
        "use_weighting": (False,),
        "sync_ref_model": (False,),
    }
)
"""Arguments of Trainers, those of TRL among them, with which losses are as they are taken to be."""


class LookAheadMixin:
    """Put it before a Trainer class, and each step trains on the part of its batch worth keeping.

        class LookAheadTrainer(LookAheadMixin, Trainer): ...

        trainer = LookAheadTrainer(
            model, args, train_dataset=noisy, targets=clean, look_ahead={"horizon": 4, "keep": 0.5}
        )

    Batches are drawn a window ahead where the Trainer draws those of one optimizer step, gradient
    accumulation included, and are cut before it counts their items. Optimizer, schedule and
    clipping are the Trainer's, and so is resuming (`resume_from_checkpoint`), which goes on as if
    training had not stopped. It runs in one process or in several (`torchrun`), on one device
    each. See `LookAheadLoader` for cost.

    Args:
        targets: the dataset to be good at, or several by name, prepared as the Trainer prepares
            an eval_dataset; that itself if None, which then is no longer a fair judge of the model.
        objective: (model, batch) -> one loss per example; the model's own loss on `labels` if
            None, see `LabelsObjective`, or `Preference` for TRL's DPOTrainer.
        look_ahead: see `Options`. Columns that `label`, `group_by` and `row` name stay in the
            batches, whatever collates them; the model gets those that it accepts. With
            `keep="weights"` the loss is the objective's, weighted.

    Raises:
        OptionError: an argument that cannot be followed.
    """

    args: Any
    model: Any
    optimizer: Any
    lr_scheduler: Any
    eval_dataset: Any
    train_dataset: Any
    state: Any
    model_accepts_loss_kwargs: bool
    loss_is_scaled_for_ga: bool | None
    data_collator: Any
    ref_model: Any
    compute_ref_log_probs: Callable[[Any, Any], Any]
    get_eval_dataloader: Callable[[Any], Any]
    label_names: list[str]
    _signature_columns: list[str]

    def __init__(
        self,
        *args: Any,
        targets: Any = None,
        objective: Objective | Callable[[Any, Any], Tensor] | None = None,
        look_ahead: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._options = _options(look_ahead or {})
        self._chosen: Objective | None = None
        self._terms: Tensor | float = 1.0
        self._prepare(super().__init__, args, kwargs, targets)
        self._objective = objective
        if objective is None:
            _require_usual_loss(self)
        if self._target_data is None:
            raise OptionError("give targets, a dataset to be good at, or an eval_dataset.")
        if self.args.n_gpu > 1:
            raise OptionError("look-ahead runs on one device; set CUDA_VISIBLE_DEVICES to one.")
        if self.args.world_size > 1 and self._options.keep != 1 and _pairs(self):
            raise OptionError(
                "TRL's DPOTrainer gathers a metric of every pair in each step, for which all "
                "processes need as many pairs, and what is kept differs; train in one process, or "
                "choose beforehand, by a recipe with objective preference."
            )
        if self._options.keep == WEIGHTS:
            _require_place_for_weights(self)
            self.loss_is_scaled_for_ga = True
        if self._options.keys:
            self.data_collator = WithColumns(self.data_collator, self._options.keys)
        self._chooser: LiveLoop | None = None
        self._source: Iterator[Any] | None = None
        self._cut: Iterator[Any] = iter(())
        self._state: Any = None

    def _prepare(
        self, init: Callable[..., None], args: tuple[Any, ...], kwargs: dict[str, Any], targets: Any
    ) -> None:
        """Initialize the Trainer, which prepares targets along with its eval_dataset."""
        names = [*inspect.signature(init).parameters]
        given = dict(zip(names, args, strict=False)) | kwargs
        own = given.get("eval_dataset")
        one = own is not None and not isinstance(own, Mapping)
        parts = {"eval": own} if one else dict(own or {})
        named = targets if isinstance(targets, Mapping) else {"target": targets}
        wanted = {} if targets is None else {TARGETS.format(name): x for name, x in named.items()}
        at = names.index("eval_dataset") if "eval_dataset" in names else len(args)
        if wanted and at < len(args):
            args = (*args[:at], parts | wanted, *args[at + 1 :])
        elif wanted:
            kwargs = kwargs | {"eval_dataset": parts | wanted}
        init(*args, **kwargs)
        self._target_data = self.eval_dataset
        if wanted:
            done = self.eval_dataset
            self._target_data = {name: done[TARGETS.format(name)] for name in named}
            rest = {name: done[name] for name in parts}
            self.eval_dataset = rest["eval"] if one else rest or None
        if self.eval_dataset is None and self.args.eval_strategy != "no":
            raise OptionError(
                f"eval_strategy is {self.args.eval_strategy.value!r}, but there is no "
                "eval_dataset, and targets are not evaluated on; give one, or set "
                "eval_strategy='no'."
            )

    @property
    def look_ahead_reports(self) -> list[WindowReport]:
        """What every window of the last training came to."""
        return [] if self._chooser is None else self._chooser.reports

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does."""
        self._chooser = self._source = self._state = None
        result = super().train(*args, **kwargs)  # type: ignore[misc]
        self._settle()
        return result

    def get_batch_samples(self, epoch_iterator: Iterator[Any], *args: Any) -> Any:
        """The batches of one optimizer step, cut, and their items counted by the Trainer."""
        self.model.train()  # as its training_step does, but before a window is simulated
        if epoch_iterator is not self._source:
            self._source = epoch_iterator
            if self._chooser is None:
                self._chooser = self._make_chooser()
                self._chooser.dataset = self.train_dataset
                if self._state is not None:
                    self._chooser.load_state_dict(self._state)
            cut = self._chooser.stream(
                epoch_iterator
                if self._options.keep == 1
                else map(self._by_example, epoch_iterator),
                lambda: self.state.max_steps - self.state.global_step,
            )
            self._cut = map(self._collated, cut)
        samples = super().get_batch_samples(self._cut, *args)  # type: ignore[misc]
        if self._chosen is not None:
            weighed = ((batch[WEIGHED], self._chosen.sizes(batch)) for batch in samples[0])
            terms = sum((weights * sizes.to(weights)).sum() for weights, sizes in weighed)
            self._terms = terms or 1.0
        return samples

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's loss, or that of the objective with the weights that a batch comes with.

        A step's batches add up to sum_i w_i l_i / sum_i w_i n_i, of losses l and sizes n.
        """
        if WEIGHED not in inputs:
            return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        assert self._chosen is not None
        weights = inputs.pop(WEIGHED)
        losses = self._chosen.losses(model, inputs)
        return (weights.to(losses) * losses).sum() / self._terms

    def _by_example(self, batch: Any) -> Any:
        """A batch that can be cut by examples, whatever the Trainer's collator makes of them."""
        if is_flattened(batch):
            if getattr(self.data_collator, "pad_to_multiple_of", None):
                raise OptionError(
                    "flattened batches that are filled up (pad_to_multiple_of) cannot be cut by "
                    "examples; leave it out."
                )
            return Sequences.split(batch)
        if _pairs(self) and "completion_mask" in batch:
            reference = {}
            if REFERENCE[0] not in batch:
                device = self.args.device
                with undisturbed(usual_sources(device)):  # a dropout that was left on
                    model = self.ref_model or self.model
                    known = self.compute_ref_log_probs(model, to_device(batch, device))
                reference = dict(zip(REFERENCE, known, strict=True))
            return Pairs.split(batch, reference)
        return batch

    def _collated(self, batch: Any) -> Any:
        """What the Trainer trains on: a batch as its collator makes them, or with weights."""
        if self._options.keep == WEIGHTS:
            batch, weights = batch
            batch = copy.copy(batch)
            batch[WEIGHED] = weights
            return batch
        return as_collated(batch)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # type: ignore[misc]
        if self._chooser is not None:
            state = self._chooser.state_dict() | {"place": None}  # which the Trainer finds itself
            write_whole(
                Path(output_dir) / STATE.format(self.args.process_index),
                lambda part: torch.save(state, part),
            )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is None:
            return
        path = Path(checkpoint) / STATE.format(self.args.process_index)
        if not path.exists():
            return
        self._state = torch.load(path, map_location="cpu", weights_only=True)
        if self.args.ignore_data_skip:  # the batches to come are others
            self._state |= {"rest": None, "report": None}

    def _load_best_model(self) -> None:
        self._settle()  # while the weights are those of the last step
        super()._load_best_model()  # type: ignore[misc]

    def _settle(self) -> None:
        if self._chooser is not None:
            self._chooser.finish()

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        columns = [*self._signature_columns, *self._options.keys]
        self._signature_columns = list(dict.fromkeys(columns))

    def _prepare_inputs(self, inputs: Any) -> Any:
        if WEIGHED in inputs:
            return to_device(inputs, self.args.device)
        return super()._prepare_inputs(self._for_model(inputs))  # type: ignore[misc]

    def _for_model(self, batch: Any) -> Any:
        unknown = self._unknown_to_model()
        return {k: v for k, v in batch.items() if k not in unknown} if unknown else batch

    def _unknown_to_model(self) -> list[str]:
        """Keys that the options read, but neither the model nor the Trainer's loss."""
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        accepted = {*inspect.signature(type(model).forward).parameters, *self.label_names}
        return [key for key in self._options.keys if key not in accepted]

    def _make_chooser(self) -> LiveLoop:
        optimizer, clip_norm = unwrap(self.optimizer), self.args.max_grad_norm or None
        training = LiveTraining(self.model, optimizer, self.lr_scheduler, clip_norm)
        targets = self._targets()
        batch = _labeled(targets[0], training.read()[0].device)
        with training.simulated(self._objective):
            self.model.eval()
            may_count = self.model_accepts_loss_kwargs and "labels" in batch
            counted = may_count and self._divides_by_count(batch)
            objective = self._objective or self._default_objective(batch, counted)
        # if the Trainer believes that the model was given a count, it adds up the means of a
        # step's batches undivided, and those of all processes where the count is theirs
        added_up = may_count and not counted
        everywhere = getattr(self.args, "average_tokens_across_devices", False)
        if counted:
            training.mean_over = "step" if everywhere else "process"
        processes = training.ranks.size if everywhere else 1
        objective = as_objective(objective, getattr(objective, "__name__", "objective"))
        if self._options.keep == WEIGHTS:
            self._chosen, added_up = objective, False
            training.mean_over = "step"  # see `compute_loss`
        return LiveLoop(
            training,
            objective,
            targets,
            self._options,
            self.args.gradient_accumulation_steps,
            (lambda count: float(count * processes)) if added_up else one_mean,
        )

    def _targets(self) -> list[Target]:
        named = isinstance(self._target_data, Mapping)
        data = self._target_data if named else {"target": self._target_data}
        loaders = {name: self.get_eval_dataloader(part) for name, part in data.items()}
        return as_targets(loaders, self._by_example)

    def _default_objective(self, batch: Any, counted: bool) -> Objective:
        if isinstance(batch, Pairs):
            return Preference(self.args.beta)
        unknown = self._unknown_to_model()
        shifts = find_shift(self.model, batch, unknown)
        trainer_shifts = getattr(self, "_loss_shifts_labels", False)
        return LabelsObjective(
            shifts=shifts,
            counts_first=counted and shifts and not trainer_shifts,
            unknown_to_model=unknown,
        )

    @torch.no_grad()
    def _divides_by_count(self, batch: Any) -> bool:
        """Whether the model's loss heeds the count of items that the Trainer hands it."""
        inputs = self._for_model(as_collated(batch))
        mean = getattr(self.model(**inputs), "loss", None)
        if mean is None:
            return False
        count = torch.tensor(10**6, device=mean.device)
        divided = self.model(**inputs, num_items_in_batch=count).loss
        return not torch.isclose(mean, divided, rtol=1e-3)


def _labeled(target: Target, device: torch.device) -> Any:
    """Some examples of a target of which one at least has labels; the first, if none has."""
    examples = target.examples
    batches = (examples.batch(rows, device) for rows in examples.chunks(8))
    return next(
        (batch for batch in batches if (batch.get("labels", torch.zeros(1)) != IGNORED).any()),
        examples.batch(torch.arange(1), device),
    )


def _options(look_ahead: Mapping[str, Any]) -> Options:
    names = sorted(Options.__dataclass_fields__)
    unknown = sorted(look_ahead.keys() - set(names))
    if unknown:
        raise OptionError(f"look_ahead has no {unknown[0]!r}; it knows {', '.join(names)}.")
    return Options(**look_ahead)


def _require_usual_loss(trainer: Any) -> None:
    """Raise OptionError if arguments of a Trainer change its loss."""
    odd = {name: getattr(trainer.args, name, usual[0]) for name, usual in USUAL.items()}
    odd = {name: value for name, value in odd.items() if value not in USUAL[name]}
    odd |= {"compute_loss_func": "set"} if getattr(trainer, "compute_loss_func", None) else {}
    if odd:
        name, value = next(iter(odd.items()))
        raise OptionError(
            f"{name} ({value}) makes a loss of its own; leave it out, or give that loss as "
            "objective, (model, batch) -> one loss per example."
        )


def _require_place_for_weights(trainer: Any) -> None:
    if trainer.args.world_size > 1:
        raise OptionError(
            'keep="weights" runs in one process in a Trainer; give keep a share, such as 0.5.'
        )
    if not hasattr(trainer, "loss_is_scaled_for_ga"):
        raise OptionError('keep="weights" needs transformers 5.19 or newer; or give keep a share.')


def _pairs(trainer: Any) -> bool:
    """Whether batches are those of TRL's DPOTrainer: preferred texts, then the others."""
    return hasattr(trainer, "compute_ref_log_probs")
