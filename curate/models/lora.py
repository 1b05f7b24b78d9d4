"""Low-rank adapters of peft: new ones, or trained ones from a directory or the Hub."""

from typing import Any

from torch import nn

from curate.errors import ModelError
from curate.models.from_path import foreign_code
from curate.models.hf import installed, loading, quiet


def add_lora(
    module: Any, task: str, *, rank: int, alpha: float, target_modules: list[str] | None
) -> nn.Module:
    """New adapters in a model; they, and a new classification head, are trained.

    task: what peft calls the model's task, such as CAUSAL_LM.

    Raises:
        ModelError: there are no such layers. MissingExtraError: peft is not installed.
    """
    peft = installed("peft", "model.lora", "lora")
    layers = [name for name, layer in module.named_modules() if _adaptable(layer)]
    for target in target_modules or ():
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            has = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in layers))
            raise ModelError(
                f"model.lora.target_modules: no layer of the model is named {target}; it has {has}."
            )
    with quiet(), foreign_code("model.lora: peft"):
        settings = peft.LoraConfig(
            r=rank, lora_alpha=alpha, target_modules=target_modules, task_type=task
        )
        adapted: nn.Module = peft.get_peft_model(module, settings)
    return adapted


def _adaptable(layer: nn.Module) -> bool:
    """Whether a layer has a matrix of its own."""
    weight = dict(layer.named_parameters(recurse=False)).get("weight")
    return weight is not None and weight.ndim > 1


def load_adapter(module: Any, task: str, path: str) -> nn.Module:
    """The adapters at `path` in the model they were trained for, to be trained further.

    Raises:
        ModelError: they cannot be loaded, or are not of this model or not for this task.
        MissingExtraError: peft is not installed.
    """
    key = "model.adapter"
    peft = installed("peft", key, "lora")
    with loading(path, key):
        settings = peft.PeftConfig.from_pretrained(path)
        weights = peft.load_peft_weights(path, device="cpu")
    if settings.peft_type != peft.PeftType.LORA:
        raise ModelError(f"{key}: {path}: is {settings.peft_type.value}; it must be LORA.")
    if settings.task_type not in (None, task):
        raise ModelError(
            f"{key}: {path}: was trained for {settings.task_type}; the objective needs {task}."
        )
    settings.inference_mode = False
    with quiet(), foreign_code(f"{key}: {path}: peft"):
        adapted: nn.Module = peft.get_peft_model(module, settings)
        loaded = peft.set_peft_model_state_dict(adapted, weights)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    strangers = [*sorted(trained.intersection(loaded.missing_keys)), *loaded.unexpected_keys]
    if strangers:
        raise ModelError(
            f"{key}: {path}: is not of this model; {strangers[0]} is in one of the two only."
        )
    return adapted
