"""Converted bases: weight for weight the models that they were made of, and the real ones do their work."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mllm.media.recording import load_clip
from mllm.models.towers.efficientnet import EfficientNetLite
from tests.bases import real_base


def test_a_llama_in_gguf_is_the_llama(tmp_path):
    gguf = pytest.importorskip("gguf")
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from mllm.models.bases.gguf_llama import LAYER_NAMES, NAMES, convert

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "ab"]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokens),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
            tie_word_embeddings=True,
        )
    ).bfloat16()
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ messages }}")
    parts = {theirs: ours for ours, theirs in (NAMES | LAYER_NAMES).items()}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        number, _, inner = name.partition("model.layers.")[2].partition(".")
        part = (inner or name).removesuffix(".weight")
        weight = value.float()
        if part.endswith(("q_proj", "k_proj")):  # GGUF has rotary pairs side by side
            heads = 4 if part.endswith("q_proj") else 2
            weight = weight.reshape(heads, 2, -1, 32).swapaxes(1, 2).reshape(weight.shape)
        prefix = f"blk.{number}." if number else ""
        writer.add_tensor(f"{prefix}{parts[part]}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    convert([tmp_path / "tiny.gguf"], tmp_path)
    found = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    assert found.dtype == torch.bfloat16
    assert found.config.rope_parameters == model.config.rope_parameters
    assert found.generation_config.eos_token_id == 2
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("ab  12<|im_end|>") == ["ab", "Ġ", "Ġ", "1", "2", "<|im_end|>"]
    assert tokenizer.chat_template == "{{ messages }}"


def test_a_whisper_of_ctranslate2_is_the_whisper():
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    from mllm.models.bases.ctranslate2_whisper import read_variables, whisper_state

    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=50,
            num_mel_bins=8,
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            max_source_positions=10,
            max_target_positions=12,
            **tokens,
        )
    ).half()
    for value in model.parameters():
        torch.nn.init.normal_(value)
    state = model.state_dict()
    state.pop("proj_out.weight")
    found = whisper_state(read_variables(model_bin(state)))
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(found[name], value), name
    with pytest.raises(ValueError, match="version 7, not 6"):
        read_variables(struct.pack("<I", 7))
    with pytest.raises(ValueError, match="its list"):
        read_variables(model_bin(state) + b"more")


def model_bin(state: dict[str, torch.Tensor]) -> bytes:
    """A Whisper as CTranslate2 writes it."""
    variables: dict[str, torch.Tensor] = {"encoder/num_heads": torch.tensor([2], dtype=torch.int8)}

    def joined(name: str, *froms: str) -> None:
        zeros = torch.zeros(len(state[f"{froms[0]}.weight"]), dtype=torch.float16)
        variables[f"{name}/weight"] = torch.cat([state[f"{each}.weight"] for each in froms])
        variables[f"{name}/bias"] = torch.cat([state.get(f"{each}.bias", zeros) for each in froms])

    def norm(name: str, each: str) -> None:
        variables[f"{name}/gamma"], variables[f"{name}/beta"] = (
            state[f"{each}.weight"],
            state[f"{each}.bias"],
        )

    for part in ("encoder", "decoder"):
        variables[f"{part}/position_encodings/encodings"] = state[f"model.{part}.embed_positions.weight"]
        norm(f"{part}/layer_norm", f"model.{part}.layer_norm")
        for n in range(2):
            to, own = f"{part}/layer_{n}", f"model.{part}.layers.{n}"
            norm(f"{to}/self_attention/layer_norm", f"{own}.self_attn_layer_norm")
            joined(f"{to}/self_attention/linear_0", *(f"{own}.self_attn.{which}_proj" for which in "qkv"))
            joined(f"{to}/self_attention/linear_1", f"{own}.self_attn.out_proj")
            if part == "decoder":
                norm(f"{to}/attention/layer_norm", f"{own}.encoder_attn_layer_norm")
                joined(f"{to}/attention/linear_0", f"{own}.encoder_attn.q_proj")
                joined(f"{to}/attention/linear_1", *(f"{own}.encoder_attn.{which}_proj" for which in "kv"))
                joined(f"{to}/attention/linear_2", f"{own}.encoder_attn.out_proj")
            norm(f"{to}/ffn/layer_norm", f"{own}.final_layer_norm")
            joined(f"{to}/ffn/linear_0", f"{own}.fc1")
            joined(f"{to}/ffn/linear_1", f"{own}.fc2")
    for conv in ("conv1", "conv2"):
        joined(f"encoder/{conv}", f"model.encoder.{conv}")
    variables["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    data = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        content = value.numpy().tobytes()
        kind = 1 if value.dtype == torch.int8 else 4
        data += text(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        data += struct.pack("<BI", kind, len(content)) + content
    return data + struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/embeddings/weight")


def test_whisper_knows_its_languages_and_tasks():
    from mllm.models.bases.ctranslate2_whisper import generation_fields

    named = (
        "endoftext",
        "startoftranscript",
        "en",
        "de",
        "translate",
        "transcribe",
        "startofprev",
        "notimestamps",
    )
    vocabulary = {f"<|{name}|>": id for id, name in enumerate(named)}
    facts = {"lang_ids": [2, 3], "suppress_ids": [7], "suppress_ids_begin": [8], "alignment_heads": [[3, 1]]}
    fields = generation_fields(vocabulary, facts)
    assert fields["lang_to_id"] == {"<|en|>": 2, "<|de|>": 3}
    assert fields["task_to_id"] == {"transcribe": 5, "translate": 4}
    assert (fields["decoder_start_token_id"], fields["no_timestamps_token_id"]) == (1, 7)


def test_batch_norm_is_folded_into_the_convolution_before_it():
    from mllm.models.bases.efficientnet_lite import folded

    parts = (("_conv_stem", "_bn0", "stem"), ("_conv_head", "_bn1", "top"))
    layers = {
        to: (torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4, eps=1e-3)) for *_, to in parts
    }
    old = {"_fc.weight": torch.zeros(2, 4), "_fc.bias": torch.zeros(2)}
    for conv, norm, to in parts:
        torch.nn.init.normal_(layers[to][1].running_mean)
        torch.nn.init.uniform_(layers[to][1].running_var, 0.5, 2.0)
        for name, module in ((conv, layers[to][0]), (norm, layers[to][1])):
            old |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    new = folded(old)
    pixels = torch.randn(1, 3, 8, 8)
    for *_, to in parts:
        conv, norm = layers[to]
        plain = torch.nn.functional.conv2d(pixels, new[f"{to}.weight"], new[f"{to}.bias"])
        torch.testing.assert_close(plain, norm.eval()(conv(pixels)), rtol=1e-4, atol=1e-5)


# --- the real ones ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_smollm2_talks():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = real_base("smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    ids = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt.input_ids.shape[1] :]
    assert tokenizer.decode(ids) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.slow
def test_the_real_whisper_hears(real_data):
    from transformers import AutoProcessor, WhisperForConditionalGeneration

    folder = real_base("whisper-base")
    processor = AutoProcessor.from_pretrained(folder)
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    sound = load_clip(real_data / "jfk" / "jfk.flac").waveform
    heard = processor(sound, sampling_rate=16000, return_tensors="pt").input_features
    ids = model.generate(heard, max_new_tokens=40)  # the language is detected
    assert processor.decode(ids[0], skip_special_tokens=True).strip() == (
        "And so my fellow Americans, ask not what your country can do for you, "
        "ask what you can do for your country."
    )


@pytest.mark.slow
def test_the_real_minilm_knows_what_is_alike():
    from transformers import AutoModel, AutoTokenizer

    folder = real_base("minilm-l6")
    texts = AutoTokenizer.from_pretrained(folder)(
        ["a dog", "a hound", "an invoice"], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        tokens = AutoModel.from_pretrained(folder)(**texts).last_hidden_state
    mask = texts.attention_mask[..., None]
    dog, hound, invoice = torch.nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=-1)
    assert dog @ hound > 0.6
    assert dog @ invoice < 0.25


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite2"])
def test_the_real_efficientnet_names_pictures(name, real_data):
    folder = Path(real_base(name))
    network = EfficientNetLite.from_pretrained(folder).eval()
    pixels = json.loads((folder / "preprocessor_config.json").read_text())
    held = load_file(folder / "model.safetensors")
    size = network.config.image_size
    for kind, imagenet in (("dalmatian", 251), ("accordion", 401), ("flamingo", 130)):
        picture = min((real_data / "real_caltech101" / "images" / kind).iterdir())
        image = Image.open(picture).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            features = network((values - pixels["image_mean"][0]) / pixels["image_std"][0]).mean((2, 3))
        assert (features @ held["classes.weight"].T + held["classes.bias"]).argmax() == imagenet, picture
