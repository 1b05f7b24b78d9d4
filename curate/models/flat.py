"""A module seen as a function of one flat vector of its trainable parameters.

The vector is put into the module's own parameters, and the module is called as training calls
it: whatever trains can be scored, and code that reaches for a layer some other way sees theta too.
"""

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import accumulate

import torch
from torch import Tensor, nn

from curate.errors import ModelError


class FlatModel:
    """A module whose trainable parameters are one vector theta of shape (P,).

    Names are ordered group by group, so that a param group is a contiguous
    slice. Frozen parameters and buffers stay the module's own. A parameter
    that the module uses under two names (tied weights) is one parameter.

    Args:
        module: the model; never trained in place. The mode (train or eval) that each of
            its layers is in now is the one it trains in.
        groups: parameter names of each param group; one group of all that require a
            gradient if None. What is not named counts as frozen.
        device, dtype: what the module is moved to; left as it is if None.
        autocast: what its passes are autocast to; None for no autocast.
        tf32: whether CUDA's matrix products of float32 are in TF32; left as set if None.

    Raises:
        ModelError: nothing is trainable, trainable parameters are of mixed
            kinds, or a layer couples the examples of a batch (BatchNorm).
    """

    def __init__(
        self,
        module: nn.Module,
        groups: Sequence[Sequence[str]] | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        autocast: torch.dtype | None = None,
        tf32: bool | None = None,
    ) -> None:
        refuse_coupled_examples(module)
        moved = device is not None or dtype is not None
        self.module = module.to(device=device, dtype=dtype) if moved else module
        self.autocast = autocast
        self._tf32 = tf32
        self._modes = {layer: layer.training for layer in module.modules()}
        trainable = {n: p for n, p in module.named_parameters() if p.requires_grad}
        if not trainable:
            raise ModelError("the model has no trainable parameters; unfreeze some of them.")
        for name, p in trainable.items():
            if nn.parameter.is_lazy(p):
                raise ModelError(f"parameter {name} has no shape yet; run the model once before.")
            if p.is_complex():
                raise ModelError(f"parameter {name} is complex; only real ones are supported.")
        groups = [[*trainable]] if groups is None else groups
        order = [name for group in groups for name in group]
        if len(set(order)) < len(order) or not set(order) <= trainable.keys():
            raise ValueError("groups must name trainable parameters, each of them once")
        self._parameters = {name: trainable[name] for name in order}
        kinds = {(p.device, p.dtype) for p in self._parameters.values()}
        if len(kinds) > 1:
            raise ModelError(
                "trainable parameters must be on one device and of one dtype but are "
                f"{', '.join(sorted(f'{dtype} on {device}' for device, dtype in kinds))}."
            )
        ((self.device, self.dtype),) = kinds
        self.names = tuple(order)
        self.uses: dict[str, set[bool]] = {name: set() for name in trainable}
        """Of every parameter that trains, whether losses used it, as `note_use` found."""
        self._trainable = trainable
        self._numels = tuple(p.numel() for p in self._parameters.values())
        self.size = sum(self._numels)
        self.group_shapes = tuple(
            tuple(tuple(trainable[name].shape) for name in group) for group in groups
        )
        self.group_sizes = tuple(sum(map(math.prod, shapes)) for shapes in self.group_shapes)

    @property
    def held(self) -> list[Tensor]:
        """The module's own parameters, frozen ones included, and its buffers."""
        return [*self.module.parameters(), *self.module.buffers()]

    @property
    def in_tf32(self) -> bool:
        """Whether its matrix products keep ten bits of what is multiplied."""
        return self.device.type == "cuda" and (_uses_tf32() if self._tf32 is None else self._tf32)

    def members(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name, in the order of theta."""
        return dict(self._parameters)

    def read(self) -> Tensor:
        """A copy of the module's own parameters as theta, shape (P,)."""
        return torch.cat([p.detach().reshape(-1) for p in self._parameters.values()])

    def unpack(self, theta: Tensor) -> dict[str, Tensor]:
        """theta, shape (P,), as views in the parameters' shapes, by name."""
        parts = zip(self._parameters.items(), theta.split(self._numels), strict=True)
        return {name: part.view(p.shape) for (name, p), part in parts}

    def pack(self, parts: Mapping[str, Tensor | None]) -> Tensor:
        """Tensors in the parameters' shapes, by name, as one vector, shape (P,); 0 for None."""
        filled = (
            (torch.zeros_like(p) if (part := parts[name]) is None else part).detach().to_dense()
            for name, p in self._parameters.items()
        )
        return torch.cat([part.reshape(-1) for part in filled])

    def parameter_at(self, index: int) -> str:
        """The name of the parameter that owns entry `index` of theta."""
        ends = zip(self.names, accumulate(self._numels), strict=True)
        return next(name for name, end in ends if index < end)

    @contextmanager
    def at(self, theta: Tensor, *, training: bool) -> Iterator[nn.Module]:
        """The module itself with theta, shape (P,), in its own parameters, without gradients.

        Every layer is in the mode it trains in, or in eval mode, and what is compiled runs as it
        was written. Whatever happens in the block, all parameters and their gradients are the
        caller's own again after it.
        """
        held = [(p, p.data, p.grad) for p in self.module.parameters()]
        modes = [(layer, layer.training) for layer in self._modes]
        try:
            self.set_mode(training=training)
            for p, _, _ in held:
                p.grad = None
            for name, part in self.unpack(theta.detach()).items():
                self._parameters[name].data = part
            torch.clear_autocast_cache()  # it holds the weights before, under an outer autocast
            with _uncompiled(), _products(self._tf32 if self.device.type == "cuda" else None):
                yield self.module
        finally:
            _put_back(held, modes)

    def gradient(self) -> Tensor:
        """What a backward pass inside `at` has left in the parameters, shape (P,)."""
        return self.pack({name: p.grad for name, p in self._parameters.items()})

    def note_use(self) -> None:
        """Take down which parameters a backward pass inside `at` has given a gradient."""
        for name, p in self._trainable.items():
            self.uses[name].add(p.grad is not None)

    @contextmanager
    def computing(self, *, exactly: bool = False) -> Iterator[None]:
        """The context of every pass: training's precision, or `exactly` that of the weights."""
        half = None if exactly else self.autocast
        with torch.enable_grad(), torch.autocast(self.device.type, half, enabled=bool(half)):
            yield

    def set_mode(self, *, training: bool) -> None:
        """Put every layer in the mode it trains in, or all of them in eval mode."""
        _set_modes((layer, trains and training) for layer, trains in self._modes.items())


def _put_back(
    held: Sequence[tuple[nn.Parameter, Tensor, Tensor | None]],
    modes: Sequence[tuple[nn.Module, bool]],
) -> None:
    """Give parameters, gradients and modes back, all of them even where Ctrl-C comes between."""
    try:
        for p, data, grad in held:
            p.data = data
            p.grad = grad
        _set_modes(modes)
        torch.clear_autocast_cache()
    except KeyboardInterrupt:
        _put_back(held, modes)
        raise


def _set_modes(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    for layer, training in modes:
        if layer.training != training:  # a module is slow to set
            layer.training = training


def _uncompiled() -> AbstractContextManager[None]:
    """Run nothing compiled: it would be compiled anew for every shift and every watch."""
    if "torch._dynamo" not in sys.modules:  # then nothing is, and loading it takes a second
        return nullcontext()
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def _products(tf32: bool | None) -> Iterator[None]:
    """CUDA's matrix products and convolutions of float32 in TF32, or not; untouched if None."""
    if tf32 is None:
        yield
        return
    before = _uses_tf32(), torch.backends.cudnn.allow_tf32
    try:
        _use_tf32(tf32, tf32)
        yield
    finally:
        _use_tf32(*before)


def _uses_tf32() -> bool:
    products = torch.backends.cuda.matmul
    try:
        return bool(products.allow_tf32)
    except RuntimeError:  # set in the way that is new in torch 2.9, and torch wants no other then
        return bool(products.fp32_precision == "tf32")


def _use_tf32(products: bool, convolutions: bool) -> None:
    try:
        torch.backends.cuda.matmul.allow_tf32 = products
    except RuntimeError:  # see `_uses_tf32`
        torch.backends.cuda.matmul.fp32_precision = "tf32" if products else "ieee"
    torch.backends.cudnn.allow_tf32 = convolutions


def refuse_coupled_examples(module: nn.Module) -> None:
    """Raise ModelError for a layer whose output for one example depends on the others."""
    for name, layer in module.named_modules():
        if not layer.training:
            continue
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise ModelError(
                f"layer {name} is a {type(layer).__name__}, which mixes the examples of a batch, "
                "so no example has a score of its own; use GroupNorm or LayerNorm, or freeze its "
                "statistics, as pretrained ones are fine-tuned: model.freeze_norms in a recipe, "
                "curate.freeze_norms(model) in Python."
            )
        if getattr(layer, "track_running_stats", False):
            raise ModelError(
                f"layer {name} ({type(layer).__name__}) keeps running statistics, a state that "
                "the optimizer does not see; build it with track_running_stats=False."
            )
