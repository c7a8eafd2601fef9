"""LoRA adapters in PEFT's format: checked against their base before use, and merged.

PEFT and vLLM silently load an adapter whose names match nothing, and then the base answers. So every weight
of an adapter must match a module, and every setting of an adapter is applied or rejected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm.errors import MllmError
from mllm.models.checkpoint_check import REMEDY, Shapes, read_json, weight_shapes

if TYPE_CHECKING:
    from mllm.models.model import MllmForConditionalGeneration

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PEFT = "base_model.model."  # before a weight's own name in the state of a PeftModel
DECODER_LAYERS = "model.language_model.layers."
EMBEDDING, HEAD = "model.language_model.embed_tokens", "lm_head"
PART = re.compile(
    r"\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.weight|\.bias)?$"
)

# Fields that change what an adapter means, and that are not supported here.
NOT_APPLIED = (
    "alora_invocation_tokens",
    "ensure_weight_tying",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)
PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")  # other initialisations change the base


@dataclass
class Adapter:
    """The contents of an adapter folder.

    Attributes:
        config: PEFT's adapter_config.json.
        modules: LoRA weights by the base's name of their module.
        whole: parameters that the adapter replaces (modules_to_save, biases).
    """

    config: dict[str, Any]
    modules: dict[str, Shapes] = field(default_factory=dict)
    whole: Shapes = field(default_factory=dict)


def check_adapter(folder: Path, base: Shapes, base_name: str) -> Adapter:
    """Reads an adapter's config and the names of its weights, and checks them against the base.

    Args:
        base: shapes of the base's weights, see `checkpoint_check.checkpoint_shapes`.
        base_name: for errors.

    Raises:
        MllmError: if a file is missing or damaged, a weight fits no module, a module that the config names
            has no weights, or the adapter is of an unsupported kind; the message names the first problem.
    """
    adapter = Adapter(read_json(folder / CONFIG))
    if problem := not_applied(adapter.config):
        raise MllmError(f"{folder}: {problem}")
    if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise MllmError(f"{folder / 'adapter_model.bin'} is a pickle: save the adapter as {WEIGHTS}")
    base = dict(base)
    if f"{HEAD}.weight" not in base and f"{EMBEDDING}.weight" in base:  # tied, so written once
        base[f"{HEAD}.weight"] = base[f"{EMBEDDING}.weight"]
    shapes = weight_shapes(folder / WEIGHTS)
    unmatched = [key for key, shape in shapes.items() if not _take(adapter, key, shape, base)]
    if unmatched or not shapes:
        count = f"{len(unmatched)} of {len(shapes)} weights fit" if shapes else "it holds nothing that fits"
        raise MllmError(
            f"{folder}: {count} no module of {base_name}{_first(unmatched)}: it was trained on another "
            "model, or saved under other names; take the base that it was trained on"
        )
    if lost := _without_weights(adapter, base):
        raise MllmError(
            f"{folder}: {CONFIG} names modules of which {WEIGHTS} holds nothing{_first(lost)}: {REMEDY}"
        )
    return adapter


def _take(adapter: Adapter, key: str, shape: tuple[int, ...], base: Shapes) -> bool:
    """Assigns a weight to its module; False if the base has no such module."""
    name = key.removeprefix("base_model.model.")
    part = PART.search(name)
    if part is None:
        name = name.replace(".base_layer.", ".")
        adapter.whole[name] = shape
        return key != name and base.get(name) == shape and _declared(adapter.config, name)
    module, kind = name[: part.start()], part.group(1)
    adapter.modules.setdefault(module, {})[kind] = shape
    weight = base.get(f"{module}.weight")
    if key == name or weight is None:
        return False
    out, inner = (weight[1], weight[0]) if "embedding" in kind else weight[:2]
    fits = {"A": shape[-1] == inner, "B": shape[0] == out}
    return len(weight) != 2 or fits.get(kind[-1], True)


def _declared(config: Mapping[str, Any], name: str) -> bool:
    """Whether PEFT loads this whole parameter: one of modules_to_save, a bias, or an embedding."""
    saved = config.get("modules_to_save") or []
    return (
        any(f".{module}." in f".{name}" for module in saved)
        or (name.endswith(".bias") and config.get("bias", "none") != "none")
        or name.removesuffix(".weight") in (EMBEDDING, HEAD)
    )


def _without_weights(adapter: Adapter, base: Shapes) -> list[str]:
    """Modules that the config targets but that have no pair of weights, or only half of one."""
    config = adapter.config
    lost = [
        module
        for module, parts in adapter.modules.items()
        if not (
            {"lora_A", "lora_B"} <= parts.keys() or {"lora_embedding_A", "lora_embedding_B"} <= parts.keys()
        )
    ]
    if config.get("layers_to_transform") is None and config.get("target_modules") != "all-linear":
        for name, shape in base.items():
            module = name.removesuffix(".weight")
            targeted = _names(config.get("target_modules"), module) and len(shape) >= 2 and module != name
            kept_out = _names(config.get("exclude_modules"), module) or f"{module}.weight" in adapter.whole
            if targeted and not kept_out and module not in adapter.modules:
                lost.append(module)
    saved = config.get("modules_to_save") or []
    return lost + [
        module for module in saved if not any(f".{module}." in f".{name}" for name in adapter.whole)
    ]


def _names(patterns: Any, module: str) -> bool:
    """Whether PEFT's target_modules (a regular expression, or names and ends of names) name a module."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in patterns or ())


def _first(names: list[str]) -> str:
    return f" ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else ""


def not_applied(config: Mapping[str, Any]) -> str | None:
    """Why an adapter with this config can be neither loaded nor merged, or None if it can."""
    kind = config.get("peft_type")
    if kind not in ("LORA", None):
        return f"a {kind} adapter: mllm takes LoRA (with DoRA, rsLoRA, modules_to_save), so merge it yourself"
    if unsupported := [name for name in NOT_APPLIED if config.get(name)]:
        return f"{CONFIG} sets {unsupported[0]}, which mllm does not apply: train the adapter without it"
    return None


def not_served(config: Mapping[str, Any], modules: Iterable[str], whole: Iterable[str] = ()) -> str | None:
    """Why vLLM cannot serve an adapter beside its base, or None if it can."""
    start = config.get("init_lora_weights", True)
    if config.get("use_dora"):
        problem = "it uses DoRA"
    elif config.get("lora_bias") or config.get("bias", "none") != "none":
        problem = "it trains biases"
    elif isinstance(start, str) and start.lower() not in PLAIN_STARTS:
        problem = f"it was begun with {start}, which changes the base as well"
    elif outside := [name for name in sorted(modules) if not name.startswith(DECODER_LAYERS)]:
        problem = f"it tunes {outside[0]}, outside the decoder's layers"
    elif saved := [*(config.get("modules_to_save") or []), *whole]:
        problem = f"it holds {saved[0]} whole (modules_to_save)"
    else:
        return None
    return f"{problem}, and vLLM serves no such adapter beside a base"


def check_served(folder: Path, base: Shapes, base_name: str) -> Adapter:
    """Checks an adapter as `check_adapter` does, and that vLLM applies all of it.

    Raises:
        MllmError: as `check_adapter` does, or if vLLM would reject it or apply only a part.
    """
    adapter = check_adapter(folder, base, base_name)
    if problem := not_served(adapter.config, adapter.modules, adapter.whole):
        raise MllmError(
            f"{folder}: {problem}: merge it with `mllm export {folder} --out FOLDER` and serve that folder"
        )
    return adapter


# --- merging --------------------------------------------------------------------------------------


def merge_lora(model: Any) -> Any:
    """Adds LoRA deltas into the weights; a model without any is returned unchanged."""
    if not hasattr(model, "merge_and_unload"):
        return model
    _untie_what_is_tuned(model.get_base_model())
    return model.merge_and_unload()


def new_token_rows(model: MllmForConditionalGeneration) -> dict[str, list[int]] | None:
    """PEFT's `trainable_token_indices`: embedding and head rows of the tokens added to a decoder.

    LoRA freezes both matrices, in which these rows are untrained. None if no tokens were added, or the
    matrices train as a whole.
    """
    rows = model.config.new_token_ids
    if not rows or model.get_input_embeddings().weight.requires_grad:
        return None
    names = [EMBEDDING] if model.config.tie_word_embeddings else [EMBEDDING, HEAD]
    return {name: list(rows) for name in names}


def _untie_what_is_tuned(base: Any) -> None:
    """Unties the head if an adapter changes only the embedding, or only the head.

    A tied weight would take the delta on both sides, and answer differently from base plus adapter.
    """
    from peft.utils.other import TrainableTokensWrapper
    from torch import nn

    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    if isinstance(embedding, TrainableTokensWrapper) and isinstance(head, TrainableTokensWrapper):
        return  # both take the same rows
    plain_embedding, plain_head = _unwrapped(embedding), _unwrapped(head)
    tuned = plain_embedding is not embedding or plain_head is not head
    if tuned and base.config.tie_word_embeddings:
        if plain_head.weight is plain_embedding.weight:
            plain_head.weight = nn.Parameter(plain_head.weight.detach().clone())
        base.config.tie_word_embeddings = base.config.text_config.tie_word_embeddings = False


def _unwrapped(module: Any) -> Any:
    """The module inside PEFT's wrappers."""
    for name in ("base_layer", "original_module"):
        module = getattr(module, name, module)
    return module


def plain_state(model: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of the model inside a PeftModel under their plain names, all but LoRA as trained.

    Args:
        state: the PeftModel's.

    Raises:
        MllmError: the adapter is of a kind that is not applied.
    """
    import torch
    from peft.utils.other import TrainableTokensWrapper

    (adapter,) = _only_adapter(model)
    if problem := not_applied(model.peft_config[adapter].to_dict() | {"trainable_token_indices": None}):
        raise MllmError(problem)
    plain: dict[str, Any] = {}
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, TrainableTokensWrapper):
            inner = f"{PEFT}{name}.token_adapter"
            weight, trained = (
                state[f"{inner}.{part}"]
                for part in ("base_layer.weight", f"trainable_tokens_delta.{adapter}")
            )
            rows = torch.tensor(module.token_adapter.token_indices[adapter], device=weight.device)
            plain[f"{name}.weight"] = weight.index_copy(0, rows, trained.to(weight))
    for name, tensor in state.items():
        if not any(part in name for part in (".lora_", ".original_module.", ".token_adapter.")):
            name = name.removeprefix(PEFT).replace(".base_layer.", ".")
            plain[name.replace(f".modules_to_save.{adapter}.", ".")] = tensor
    return plain


def _only_adapter(model: Any) -> list[str]:
    names = list(model.peft_config)
    if len(names) != 1:
        raise MllmError(
            f"the model has {len(names)} adapters, {', '.join(names)}: delete or merge all but one"
        )
    return names


def save_adapter(model: Any, state: Mapping[str, Any], folder: Path, dtype: Any = None) -> None:
    """Writes the LoRA deltas of a PeftModel with this state.

    Nothing else of what was trained is written: that is in the base.
    """
    from dataclasses import replace

    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    (adapter,) = _only_adapter(model)
    folder.mkdir()
    deltas = get_peft_model_state_dict(
        model, state_dict=dict(state), adapter_name=adapter, save_embedding_layers=False
    )
    deltas = {
        name: tensor.detach().to(dtype or tensor.dtype).contiguous()
        for name, tensor in deltas.items()
        if ".lora_" in name
    }
    save_file(deltas, folder / WEIGHTS, metadata={"format": "pt"})
    replace(
        model.peft_config[adapter],
        inference_mode=True,
        base_model_name_or_path="..",
        modules_to_save=None,
        trainable_token_indices=None,
        init_lora_weights=True,  # PEFT has already changed the base as it was written: not again on loading
    ).save_pretrained(folder)
