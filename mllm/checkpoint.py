"""Model folders: built from an experiment, loaded, saved whole or not at all, and exported for vLLM.

A checkpoint folder holds

    config.json, model.safetensors, generation_config.json
    processor_config.json, tokenizer*.json, chat_template.jinja
    experiment.yaml, metrics.json, README.md     where it comes from
    adapter/                                     only where LoRA deltas stand beside the base

`from_pretrained` and `vllm serve` take the folder as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from mllm import chat
from mllm.errors import ConfigError, MllmError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerFast

    from mllm.model import MllmForConditionalGeneration
    from mllm.processor import MllmProcessor

DEFAULT_CHECKPOINT = Path(__file__).parent / "checkpoints" / "nano"
ADAPTER = "adapter"  # folder inside a checkpoint folder
STAGES = ("instruct", "contrastive", "text")  # of a run folder, best result first
PROVENANCE = ("experiment.yaml", "metrics.json", "README.md")


# --- building -----------------------------------------------------------------------------------------------


def build_model(
    settings: Any, texts: Iterable[str] | None = None
) -> tuple[MllmForConditionalGeneration, MllmProcessor]:
    """A new model and its processor from the `model` section of an experiment.

    Each of `decoder`, `video`, `audio`, `text` is a hub id or a folder (weights and config from there), or a
    dict with a `type` and the fields of that type's transformers config (random weights).

    Args:
        settings: `experiment.model`.
        texts: what the tokenizer is trained on where the decoder starts from nothing.

    Raises:
        ConfigError: for an unknown type or field, or sizes that do not fit together.
    """
    from transformers import AutoModelForCausalLM

    from mllm.config import MllmConfig
    from mllm.model import MllmForConditionalGeneration
    from mllm.processor import MllmProcessor

    tokenizer = _tokenizer(settings, texts)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in chat.PLACEHOLDERS.items()}
    decoder = None
    if isinstance(settings.decoder, str):
        decoder = AutoModelForCausalLM.from_pretrained(settings.decoder, dtype=torch.float32)
        if decoder.get_input_embeddings().num_embeddings < len(tokenizer):
            decoder.resize_token_embeddings(len(tokenizer))
        text_config = decoder.config
    else:
        text_config = _config(settings.decoder, "decoder", vocab_size=len(tokenizer))
    # Only <|end|> ends an answer; the decoder's own end marker would end it in mid-sentence of a chat.
    text_config.update(
        {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.convert_tokens_to_ids(chat.END_TOKEN),
            "pad_token_id": tokenizer.pad_token_id,
        }
    )
    space_config = None
    if settings.text is not None:
        space_config = _config(
            settings.text, "text", vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id
        )
    try:
        config = MllmConfig(
            text_config=text_config,
            video_config=_config(settings.video, "video", num_frames=settings.frames_per_window),
            audio_config=_config(settings.audio, "audio"),
            space_config=space_config,
            video_queries=settings.video_queries,
            audio_queries=settings.audio_queries,
            qformer_width=settings.qformer.width,
            qformer_layers=settings.qformer.layers,
            qformer_heads=settings.qformer.heads,
            window_seconds=settings.window_seconds,
            frames_per_window=settings.frames_per_window,
            max_windows=settings.max_windows,
            embedding_dim=settings.embedding_dim,
            video_token_id=ids["video"],
            audio_token_id=ids["audio"],
            image_token_id=ids["image"],
        )
        model = MllmForConditionalGeneration(config)
    except MllmError:
        raise
    except ValueError as error:
        raise ConfigError(f"model: {error}") from None
    if decoder is not None:
        model.model.language_model.load_state_dict(decoder.get_decoder().state_dict())
        model.lm_head.load_state_dict(decoder.get_output_embeddings().state_dict())
        model.tie_weights()
    for part, tower in (("video", model.model.video_tower), ("audio", model.model.audio_tower)):
        if isinstance(getattr(settings, part), str):
            _load_tower(tower, getattr(settings, part))
    model.generation_config = _generation(tokenizer)
    return model, MllmProcessor.from_config(tokenizer, config)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that can spell anything, with our special tokens among `vocabulary`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(chat.SPECIAL_TOKENS) - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def _tokenizer(settings: Any, texts: Iterable[str] | None) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    if isinstance(settings.decoder, str):
        tokenizer = AutoTokenizer.from_pretrained(settings.decoder)
    elif texts is None:
        raise ConfigError(
            "model.decoder starts from nothing: give build_model texts to train its tokenizer on"
        )
    else:
        tokenizer = train_tokenizer(texts, settings.tokenizer_vocab)
    # BOS as the tokenizer has it; all the rest are ours, so that one template fits every decoder.
    tokenizer.add_special_tokens(
        {
            "bos_token": tokenizer.bos_token or chat.BOS_TOKEN,
            "eos_token": chat.END_TOKEN,
            "pad_token": chat.PAD_TOKEN,
            "extra_special_tokens": list(chat.SPECIAL_TOKENS),
        },
        replace_extra_special_tokens=False,
    )
    tokenizer.padding_side = "right"
    return tokenizer


def _config(component: str | Mapping[str, Any], part: str, **fixed: Any) -> PreTrainedConfig:
    """The transformers config of one component; `fixed` are the fields that other settings decide."""
    from transformers import CONFIG_MAPPING, AutoConfig

    if isinstance(component, str):
        config = AutoConfig.from_pretrained(component)
        config.update(fixed)
        return config
    fields = dict(component)
    kind = fields.pop("type", None)
    if kind not in CONFIG_MAPPING:
        raise ConfigError(
            f"model.{part}.type is {kind!r}: name a transformers model type, such as llama or whisper"
        )
    config_class = CONFIG_MAPPING[kind]
    known = set(config_class().to_dict())
    for name, value in fields.items():
        if value != fixed.get(name, value):
            needed = fixed[name]
            raise ConfigError(
                f"model.{part}.{name} is {value}, but the rest of the model needs {needed}: drop it"
            )
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f": did you mean {near[0]}?" if near else f": see the fields of {config_class.__name__}"
            raise ConfigError(f"model.{part} has no field '{name}'{hint}")
    try:
        return config_class(**fields | fixed)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"model.{part}: {error}") from None


def _load_tower(tower: Any, name: str) -> None:
    """Pretrained weights into a tower; time embeddings are stretched to another number of frames."""
    from transformers import AutoModel

    source = AutoModel.from_pretrained(name, dtype=torch.float32)
    weights = getattr(source, "encoder", source) if not hasattr(source, "embeddings") else source
    state, wanted = weights.state_dict(), tower.encoder.state_dict()
    for key, value in state.items():
        if key in wanted and value.shape != wanted[key].shape and key.endswith("time_embeddings"):
            length = wanted[key].shape[1]
            state[key] = torch.nn.functional.interpolate(
                value.transpose(1, 2), length, mode="linear"
            ).transpose(1, 2)
    try:
        tower.encoder.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigError(f"{name} does not fit the tower: {str(error).splitlines()[-1].strip()}") from None


def _generation(tokenizer: Any) -> GenerationConfig:
    """Greedy, and only <|end|> ends an answer."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(chat.END_TOKEN),
        pad_token_id=tokenizer.pad_token_id,
    )


# --- loading ------------------------------------------------------------------------------------------------


def find_default_checkpoint() -> Path:
    """The nano checkpoint that ships with the package.

    Raises:
        MllmError: where it is missing.
    """
    if not (DEFAULT_CHECKPOINT / "config.json").is_file():
        raise MllmError(
            f"the nano checkpoint is missing ({DEFAULT_CHECKPOINT}): name a checkpoint folder, or train one "
            "with `mllm train all configs/nano.yaml`"
        )
    return DEFAULT_CHECKPOINT


def load(
    folder: str | Path | None = None,
    dtype: torch.dtype | str = torch.float32,
    device: str | torch.device = "cpu",
    merge: bool = True,
) -> tuple[Any, MllmProcessor]:
    """A model, in evaluation mode, and its processor.

    Args:
        folder: a checkpoint folder, a run folder, an adapter folder (its base is found through it), or a hub
            id; None takes the checkpoint that ships with mllm.
        merge: LoRA deltas are added into the weights; False returns the PeftModel.

    Raises:
        MllmError: if there is no checkpoint.
    """
    from mllm.model import MllmForConditionalGeneration

    base, adapter = resolve(folder)
    processor = load_processor(base)
    # The folder's own file asks servers for temperature 0; generate() wants that said by do_sample alone.
    model = MllmForConditionalGeneration.from_pretrained(
        base, dtype=_dtype(dtype), generation_config=_generation(processor.tokenizer)
    )
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
        if merge:
            model = merge_lora(model)
    return model.to(device).eval(), processor


def _dtype(name: torch.dtype | str) -> torch.dtype:
    dtype = getattr(torch, name, None) if isinstance(name, str) else name
    if not isinstance(dtype, torch.dtype):
        raise MllmError(f"dtype is '{name}': choose bfloat16, float16 or float32")
    return dtype


def load_processor(folder: str | Path | None = None) -> MllmProcessor:
    """The processor of what `load` takes."""
    from mllm.processor import MllmProcessor

    return MllmProcessor.from_pretrained(resolve(folder)[0])


def resolve(folder: str | Path | None) -> tuple[str, Path | None]:
    """(base folder or hub id, adapter folder or None) of what `load` takes.

    Raises:
        MllmError: if a folder holds no checkpoint.
    """
    if folder is None:
        return str(find_default_checkpoint()), None
    path = Path(folder)
    if not path.exists():
        if len(path.parts) == 2 and not path.is_absolute() and not str(folder).startswith("."):
            return str(folder), None  # a hub id: owner/name
        raise MllmError(f"no checkpoint at {folder}: give a checkpoint folder, a run folder or a hub id")
    for inner in ("final", *(f"{stage}/final" for stage in STAGES)):
        if (path / inner / "config.json").is_file():
            path = path / inner
            break
    if (path / "adapter_config.json").is_file():
        base = Path(json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"] or "")
        for candidate in (path / base, path.parent, base):
            if (candidate / "config.json").is_file():
                return str(candidate), path
        raise MllmError(
            f"the adapter {path} names the base '{base}', which is not there: put it back or mend the name"
        )
    if not (path / "config.json").is_file():
        raise MllmError(
            f"{path} holds no checkpoint (no config.json): was the training stopped before it finished?"
        )
    return str(path), path / ADAPTER if (path / ADAPTER / "adapter_config.json").is_file() else None


def merge_lora(model: Any) -> MllmForConditionalGeneration:
    """LoRA deltas added into the weights they stand beside; a model without any comes back as it is."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


# --- saving -------------------------------------------------------------------------------------------------


def save(
    model: Any,
    processor: MllmProcessor,
    folder: str | Path,
    extra: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a checkpoint folder, whole or not at all; one that is there already is replaced.

    Args:
        model: the model, or a PeftModel around it: its LoRA deltas go into `adapter/`, everything else that
            was trained into the base.
        extra: further files, name to text.
        dtype: of the weights as written; None keeps them.

    Raises:
        MllmError: if the disk is full or the folder cannot be written; nothing is left behind.
    """
    folder = Path(folder)
    base, state = _base_of(model)
    if dtype is not None:
        state = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()
        }
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        base.save_pretrained(temporary, state_dict=state)
        # Trainer switches the cache off in the config for its own sake.
        kind = {"dtype": str(dtype).removeprefix("torch.")} if dtype is not None else {}
        _edit_json(temporary / "config.json", {"use_cache": True} | kind)
        processor.save_pretrained(temporary)
        # vLLM takes its default temperature from here: 0 is greedy.
        _edit_json(temporary / "generation_config.json", {"temperature": 0.0})
        if base is not model:
            _save_adapter(model, temporary / ADAPTER, dtype)
        for name, text in (extra or {}).items():
            (temporary / name).write_text(text, encoding="utf-8")
        for path in (temporary, *temporary.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)  # some were made for their owner alone
        _replace_folder(temporary, folder)
    except OSError as error:
        raise MllmError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _base_of(model: Any) -> tuple[MllmForConditionalGeneration, dict[str, torch.Tensor]]:
    """The plain model inside a PeftModel, and its weights under their plain names."""
    if not hasattr(model, "get_base_model"):
        return model, model.state_dict()
    base = model.get_base_model()
    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in base.state_dict().items()
        if ".lora_" not in name
    }
    return base, state


def _save_adapter(model: Any, folder: Path, dtype: torch.dtype | None) -> None:
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir()
    # LoRA alone: whatever else was trained is in the base already, and vLLM refuses modules_to_save.
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    state = {name: tensor.detach().to(dtype or tensor.dtype).contiguous() for name, tensor in state.items()}
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = replace(model.peft_config["default"], inference_mode=True, base_model_name_or_path="..")
    config.save_pretrained(folder)


def _edit_json(path: Path, changes: Mapping[str, Any]) -> None:
    values = json.loads(path.read_text(encoding="utf-8")) | dict(changes)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; a folder of that name is moved away first and then deleted."""
    if folder.exists():
        old = new.with_suffix(".old")
        os.replace(folder, old)
        os.replace(new, folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(new, folder)


# --- export -------------------------------------------------------------------------------------------------


def export(
    source: str | Path, out: str | Path, dtype: torch.dtype | str = torch.bfloat16, adapter: str = "merged"
) -> Path:
    """A folder that vLLM serves with no further flag, from a run or a checkpoint.

    Args:
        source: run folder or checkpoint folder.
        dtype: of the weights.
        adapter: "merged" adds LoRA deltas into the weights; "beside" leaves them in `out/adapter`, to be
            served by name: `--enable-lora --lora-modules NAME=OUT/adapter`.

    Raises:
        MllmError: if there is no checkpoint, or `adapter` is neither word.
    """
    if adapter not in ("merged", "beside"):
        raise MllmError(f"adapter is '{adapter}': choose merged or beside")
    dtype = _dtype(dtype)
    base, _ = resolve(source)
    # Merged in float32 and rounded once.
    model, processor = load(source, dtype=torch.float32, merge=adapter == "merged")
    found = {name: Path(base) / name for name in PROVENANCE}
    extra = {name: path.read_text(encoding="utf-8") for name, path in found.items() if path.is_file()}
    return save(model, processor, out, extra, dtype=dtype)


def write_model_card(folder: str | Path, info: Mapping[str, Any]) -> Path:
    """README.md of a checkpoint folder.

    Args:
        info: all optional: `name`, `summary` (a sentence), `facts` (label to text: data, steps, machine),
            `tables` (title to rows, each a mapping of column to cell), `limits` (list of sentences).
    """
    lines = [
        "---",
        "license: apache-2.0",
        "library_name: mllm",
        "pipeline_tag: video-text-to-text",
        "---",
        "",
    ]
    lines += [f"# {info.get('name', Path(folder).name)}", ""]
    if info.get("summary"):
        lines += [info["summary"], ""]
    lines += [f"- **{label}**: {text}" for label, text in info.get("facts", {}).items()] + [""]
    for title, rows in info.get("tables", {}).items():
        columns = list(rows[0]) if rows else []
        lines += [f"## {title}", "", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows] + [
            ""
        ]
    if info.get("limits"):
        lines += ["## Limits", "", *(f"- {limit}" for limit in info["limits"]), ""]
    path = Path(folder) / "README.md"
    partial = path.with_name("README.md.part")
    partial.write_text("\n".join(lines), encoding="utf-8")
    os.replace(partial, path)
    return path


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def export_command(
    run: Annotated[str, typer.Argument(help="A run folder or a checkpoint folder.")],
    out: Annotated[str, typer.Option(help="The folder to write.")],
    dtype: Annotated[str, typer.Option(help="Of the weights: bfloat16, float16 or float32.")] = "bfloat16",
    adapter: Annotated[str, typer.Option(help="LoRA deltas: merged in, or beside the base.")] = "merged",
) -> None:
    """Write a folder that vLLM serves, from a run or a checkpoint folder."""
    folder = export(run, out, dtype, adapter)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    print(f"{folder}  {size:.1f} MB  {dtype}")
    print(f"serve it:  mllm serve {folder}")
    if (folder / ADAPTER).is_dir():
        print(f"with its adapter:  mllm serve {folder} --enable-lora --lora-modules tuned={folder / ADAPTER}")
