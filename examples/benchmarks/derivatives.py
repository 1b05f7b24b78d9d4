"""Scores by ordinary gradients beside scores by double backward: how near, at what cost.

The same recorded run is gone through twice: by `curate`, and by differentiating every gradient a
second time (attention written out, all in autograd), which is the reference. Nothing is dropped. In
float32, whole runs: digits and MNIST-sized perceptrons, a small CNN, a GPT of 4 x 256, a tiny Llama
by LoRA and whole. Printed: relative error of all scores, Spearman, the error that the engine
expects of itself, and seconds.

    python examples/benchmarks/derivatives.py [NAME ...]
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits
from small_gpt import small_gpt
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from curate.datasets import Encoded, TensorExamples, TokenExamples
from curate.influence import Target, final_adjoint, influence, score_window, target_gradients
from curate.influence.through_rule import through_rule
from curate.models import BUILTIN_MODELS, Classification, FlatModel, LabelsObjective
from curate.rules import AdamW, State, initial_state
from curate.trajectory import Recording, Step, Task, record

Made = tuple[nn.Module, Any, Any, Any, int, int, float]
"""Module, objective, candidates, targets, batch size, steps, learning rate."""


def digits() -> Made:
    data = load_digits()
    x = torch.tensor(data.data / 16.0, dtype=torch.float32)
    y = torch.tensor(data.target)
    rows = torch.arange(len(y))
    train, held = (
        TensorExamples(x[part], y[part], rows[part]) for part in (slice(0, 1000), slice(1000, 1300))
    )
    return (
        BUILTIN_MODELS["mlp"]((64,), 10, hidden=(32, 32)),
        Classification(),
        train,
        held,
        32,
        62,
        1e-2,
    )


def images(build: Callable[[], nn.Module]) -> Made:
    """Ten classes of noisy patterns, 28 x 28."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 1, 28, 28, generator=generator)
    y = torch.randint(10, (1200,), generator=generator)
    x = centres[y] + 2 * torch.randn(1200, 1, 28, 28, generator=generator)
    rows = torch.arange(1200)
    train, held = (
        TensorExamples(x[part], y[part], rows[part]) for part in (slice(0, 960), slice(960, 1200))
    )
    return build(), Classification(), train, held, 64, 30, 1e-3


def texts(module: nn.Module, vocabulary: int, batch: int, steps: int, lr: float) -> Made:
    """Random walks over the vocabulary, which can be learnt."""
    generator = torch.Generator().manual_seed(0)
    hops = torch.randint(-3, 4, (batch * steps + 32, 48), generator=generator)
    walks = (torch.randint(vocabulary, (len(hops), 1), generator=generator) + hops.cumsum(1)) % (
        vocabulary
    )

    def gather(part: Tensor) -> TokenExamples:
        encoded = (Encoded(row, [True] * len(row)) for row in part.tolist())
        return TokenExamples.gather(encoded, None, pad=0)

    objective = LabelsObjective(shifts=True)
    return module, objective, gather(walks[:-32]), gather(walks[-32:]), batch, steps, lr


def gpt() -> Made:
    module = small_gpt(layers=4, width=256, heads=4, vocabulary=512, length=64)
    return texts(module, 512, 16, 10, 5e-4)


def llama(*, lora: bool) -> Made:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=256,
        use_cache=False,
    )
    module: Any = LlamaForCausalLM(config)
    if lora:
        adapters = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
        module = get_peft_model(module, adapters)
    return texts(module, 256, 16, 20, 3e-3)


SETTINGS: dict[str, Callable[[], Made]] = {
    "digits MLP": digits,
    "MNIST-sized MLP": lambda: images(
        lambda: BUILTIN_MODELS["mlp"]((1, 28, 28), 10, hidden=(128,))
    ),
    "MNIST-sized MLP, ReLU": lambda: images(
        lambda: BUILTIN_MODELS["mlp"]((1, 28, 28), 10, hidden=(128,), activation="relu")
    ),
    "CNN": lambda: images(lambda: BUILTIN_MODELS["cnn"]((1, 28, 28), 10)),
    "CNN, ReLU": lambda: images(lambda: BUILTIN_MODELS["cnn"]((1, 28, 28), 10, activation="relu")),
    "tiny Llama, LoRA": lambda: llama(lora=True),
    "tiny Llama, all weights": lambda: llama(lora=False),
    "GPT 4x256": gpt,
}


def by_double_backward(
    task: Task, rule: AdamW, recording: Recording, target: Target
) -> list[Tensor]:
    """Influences of every step, shape (1, n): the same way back by autograd's Hessian."""
    model = task.model
    _, gradients = target_gradients(model, task.objective, [target], recording.final.theta)
    adjoint, found = final_adjoint(recording.final, gradients), []
    for k, state, grad in recording.backwards():
        step = recording.steps[k]
        to_gradient, direct = through_rule(rule, grad.mean, state, step.lrs, adjoint)
        theta = state.theta.clone().requires_grad_()
        weights = step.weights.clone().requires_grad_()
        parameters = model.unpack(theta)

        def called(*args: Any, _own: dict[str, Tensor] = parameters, **kwargs: Any) -> Any:
            return torch.func.functional_call(model.module, _own, args, kwargs)

        batch = task.examples.batch(step.rows, model.device)
        model.set_mode(training=True)
        with task.seeded(step.seed), sdpa_kernel(SDPBackend.MATH):
            losses = task.objective.losses(called, batch)
            (total,) = torch.autograd.grad((weights * losses).sum(), theta, create_graph=True)
            slopes, bent = torch.autograd.grad(total, [weights, theta], to_gradient[0])
        found.append(influence(slopes[None], step.weights, grad.sizes, "renormalised"))
        terms = (step.weights * grad.sizes).sum().to(bent)
        adjoint = (direct[0] + bent / terms, *direct[1:])
    return found[::-1]


def compare(name: str) -> dict[str, float]:
    """One line of the table."""
    torch.manual_seed(0)
    module, objective, candidates, held, batch, steps, lr = SETTINGS[name]()
    task = Task(FlatModel(module.train()), objective, candidates)
    target, rule = Target("held", held), AdamW()
    plan = [
        Step(rows, torch.ones(len(rows)), (lr,), seed=t)
        for t, rows in enumerate(torch.arange(len(candidates)).split(batch)[:steps])
    ]
    plan = (plan * (1 + steps // len(plan)))[:steps]
    start: State = initial_state(rule, task.model.read())

    def recorded() -> Recording:
        return record(task, rule, start, plan, snapshots=steps, gradients=steps)

    recording = recorded()
    begin = time.perf_counter()
    scores = score_window(task, rule, recording, [target])
    ours = time.perf_counter() - begin
    recording = recorded()
    begin = time.perf_counter()
    right = torch.cat([x[0] for x in by_double_backward(task, rule, recording, target)])
    theirs = time.perf_counter() - begin
    found = torch.cat([x[0] for x in scores.influences])
    ranks = torch.stack([found.argsort().argsort(), right.argsort().argsort()]).double()
    return {
        "relative error": float((found - right).norm() / right.norm()),
        "Spearman": float(torch.corrcoef(ranks)[0, 1]),
        "expected": max(scores.drifts),
        "seconds": ours,
        "double backward": theirs,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Scores beside those of double backward.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SETTINGS)}; all if none")
    names = parser.parse_args().names or [*SETTINGS]
    unknown = [name for name in names if name not in SETTINGS]
    if unknown:
        print(
            f"no setting is called {unknown[0]}; there are {', '.join(SETTINGS)}", file=sys.stderr
        )
        return 2
    torch.set_num_threads(1)
    for name in names:
        row = compare(name)
        print(f"{name:24s} " + "  ".join(f"{k} {v:.5g}" for k, v in row.items()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
