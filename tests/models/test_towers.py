"""The contract of towers, from preparing a recording to its tokens; bases, changes, models with one side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mllm.errors import ConfigError, MediaError
from mllm.experiment import Model
from mllm.models import checkpoint
from mllm.models.build import build_model, window_spec
from mllm.models.config import MllmConfig
from mllm.models.encoded import collate_media
from mllm.models.feature_cache import FeatureCache, freeze_and_keep
from mllm.models.processor import MllmProcessor
from mllm.models.sides import sides_of_processor
from mllm.models.towers import WindowSize, find_tower, known_towers
from mllm.models.towers.base import TextTower
from mllm.search.embedder import Embedder, longest_text, text_inputs
from tests.tiny import SETTINGS, TEXTS, ask, clip, still

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
VIDEOMAE = {"type": "videomae", "image_size": 32, "patch_size": 16, "tubelet_size": 2, **SMALL}
HUBERT = {
    "type": "hubert",
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    **SMALL,
    **dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "layerdrop"), 0.0),
}
LITE = {
    "type": "efficientnet_lite",
    "image_size": 48,
    "width_multiplier": 0.2,
    "depth_multiplier": 0.3,
    "hidden_size": 32,
    "grid": 2,
    "mixer_width": 16,
    "mixer_layers": 1,
}
LAYERS = SETTINGS["audio"] | {"encoder_layers": 3, "layers": [1, 2]}
BOTH = {"video": VIDEOMAE, "audio": HUBERT}
PAIRS = {
    "timesformer and whisper": {},
    "videomae and hubert": BOTH,
    "efficientnet and layers of whisper": {"video": LITE, "audio": LAYERS},
}
ASKED = [ask(clip(4), "what colour?", answer="red"), ask(still(), "what is it?", answer="a star")]


def built(**changes) -> tuple:
    torch.manual_seed(0)
    model, processor = build_model(Model.model_validate(SETTINGS | changes), list(TEXTS))
    return model.eval(), processor


@pytest.fixture(scope="module", params=PAIRS)
def pair(request):
    """(model, processor)"""
    return built(**PAIRS[request.param])


# --- the contract ---------------------------------------------------------------------------------


def test_a_tower_gives_the_tokens_that_it_promises(pair):
    model, processor = pair
    features = processor.media(clip(4), "video")
    given = {
        "video": (features.pixel_values, None),
        "audio": (features.input_features, features.window_counts),
    }
    for side, tower in model.model.towers.items():
        values, counts = given[side]
        assert tower(tower.ready(values)).shape == (len(values), tower.tokens_per_chunk, tower.width)
        assert tower.windows(values, counts).shape == (2, tower.tokens_per_window, tower.width)
        assert processor.no_chunks(side).shape[1:] == values.shape[1:]


def test_every_parameter_of_a_tower_learns(pair):
    model, processor = pair
    batch = processor.collate([processor.encode(messages) for messages in ASKED])
    model.zero_grad()
    model(**batch, use_cache=False).loss.backward()
    for side, tower in model.model.towers.items():
        without = [
            name for name, weight in tower.named_parameters() if weight.grad is None or not weight.grad.any()
        ]
        # Sinusoids; and what shifts all keys alike shifts no attention.
        assert not [name for name in without if name not in tower.fixed and "k_proj.bias" not in name], side


def test_a_saved_model_says_the_same(pair, tmp_path: Path):
    model, processor = pair
    checkpoint.save(model, processor, tmp_path / "saved")
    again, its_processor = checkpoint.load(tmp_path / "saved")
    assert its_processor.sides == processor.sides
    batch = processor.batch([ASKED[0][:1]])
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, again(**its_processor.batch([ASKED[0][:1]])).logits)


@torch.no_grad()
def test_features_are_kept(pair, tmp_path: Path):
    model, processor = pair
    cache = FeatureCache(tmp_path)
    freeze_and_keep(model, cache)
    media = collate_media([processor.media(clip(4), "video")])
    first, again = model.model.query_outputs(**media), model.model.query_outputs(**media)
    assert cache.hits == cache.misses > 0
    assert all(torch.equal(first[side], again[side]) for side in first)
    for tower in model.model.towers.values():
        tower.kept = None
    model.requires_grad_(True)


def test_a_recording_is_found_with_any_towers(pair):
    model, processor = pair
    embedder = Embedder(model, processor)
    found = list(embedder.windows(clip(4)))
    assert [row.modality for row in found] == ["video", "audio", "both"] * 2
    assert all(np.linalg.norm(row.vector) == pytest.approx(1, abs=1e-5) for row in found)


# --- preparing recordings -------------------------------------------------------------------------


def test_videomae_is_normalised_with_its_own_mean_and_deviation():
    tower = built(**BOTH)[0].model.video_tower
    black, white = torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8), torch.full((1, 2, 3, 32, 32), 255)
    assert tower.ready(black).unique().tolist() == [-1.0]
    assert tower.ready(white).unique().tolist() == [1.0]
    changed = built(video=VIDEOMAE | {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]})[0]
    assert changed.model.video_tower.ready(white).unique().tolist() == [1.0]
    assert changed.model.video_tower.ready(black).unique().tolist() == [0.0]


def test_hubert_hears_what_its_own_extractor_makes_of_a_waveform():
    from transformers import Wav2Vec2FeatureExtractor

    processor = built(**BOTH)[1]
    long, short = clip(2).waveform, clip(2, 1).waveform[:20000] * 0.01 + 0.2
    features, counts = processor.sound_features([long, short])
    theirs = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)(
        [long, short], sampling_rate=16000, padding=True, return_tensors="pt"
    )
    assert counts.tolist() == [1, 1]
    torch.testing.assert_close(features, theirs.input_values, atol=1e-4, rtol=1e-4)


# --- a frame network under a mixer ----------------------------------------------------------------


@torch.no_grad()
def test_a_frame_network_sees_an_image_once(tmp_path: Path):
    model, processor = built(video=LITE)
    tower = model.model.video_tower
    seen: list[int] = []
    tower.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    image = processor.media(still(), "image").pixel_values
    queries = model.model.image_queries(image)
    assert seen == [1]
    frames = image.unsqueeze(1).expand(-1, 2, -1, -1, -1)
    torch.testing.assert_close(queries, model.model.side_queries("video", frames))
    assert seen == [1, 2]
    freeze_and_keep(model, cache := FeatureCache(tmp_path))
    kept = [model.model.image_queries(image) for _ in range(2)]
    assert (seen, cache.hits) == ([1, 2, 1], 1)
    torch.testing.assert_close(kept[1], queries, atol=0.02, rtol=0.02)


@torch.no_grad()
def test_the_mixer_knows_which_frame_is_first():
    tower = built(video=LITE)[0].model.video_tower
    frames = torch.randint(0, 256, (1, 2, 3, 48, 48), dtype=torch.uint8)
    there, back = tower.windows(frames)[0], tower.windows(frames.flip(1))[0]
    assert (there[0] - back[0]).abs().max() > 1e-5


def test_pixels_are_padded_as_in_tensorflow():
    """An even size and a stride of 2: the one pixel of padding is on the right and at the bottom."""
    from mllm.models.towers.efficientnet import SameConv

    conv = SameConv(1, 1, 3, 2, bias=False)
    torch.nn.init.ones_(conv.weight)
    assert conv(torch.ones(1, 1, 4, 4)).tolist() == [[[[9.0, 6.0], [6.0, 4.0]]]]


# --- bases ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, str]:
    """Folders as the hub has them: weights, config, and the preprocessor's own file."""
    from transformers import (
        BertConfig,
        BertModel,
        HubertConfig,
        HubertForCTC,
        VideoMAEConfig,
        VideoMAEForPreTraining,
        WhisperConfig,
        WhisperForConditionalGeneration,
    )

    torch.manual_seed(1)
    root = tmp_path_factory.mktemp("bases")
    fields = {key: value for key, value in VIDEOMAE.items() if key != "type"}
    decoder = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    VideoMAEForPreTraining(VideoMAEConfig(**fields, **decoder, num_frames=4)).save_pretrained(root / "video")
    pixels = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (root / "video" / "preprocessor_config.json").write_text(json.dumps(pixels))
    HubertForCTC(HubertConfig(**{k: v for k, v in HUBERT.items() if k != "type"})).save_pretrained(
        root / "hubert"
    )
    (root / "hubert" / "preprocessor_config.json").write_text('{"do_normalize": false}')
    fields = {key: value for key, value in SETTINGS["audio"].items() if key != "type"}
    sizes = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 48, "vocab_size": 64}
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    config = WhisperConfig(**fields | {"max_source_positions": 1500, "encoder_layers": 2}, **sizes, **tokens)
    WhisperForConditionalGeneration(config).save_pretrained(root / "whisper")
    tokenizer = sentence_tokenizer()
    tokenizer.save_pretrained(root / "text")
    BertModel(BertConfig(vocab_size=len(tokenizer), **SMALL, max_position_embeddings=16)).save_pretrained(
        root / "text"
    )
    return {path.name: str(path) for path in root.iterdir()}


def sentence_tokenizer(*more: str):
    """A word-piece tokenizer such as sentence encoders have."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "star", "moves", *more]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {name: f"[{name[:3].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def test_a_base_brings_its_weights_and_its_preprocessing(bases):
    model, processor = built(video=bases["video"], audio=bases["hubert"], frames_per_window=4)
    assert processor.sides["video"]["image_mean"] == [0.485, 0.456, 0.406]
    assert processor.sides["audio"]["do_normalize"] is False
    from transformers import HubertModel, VideoMAEModel

    for tower, base in (
        (model.model.video_tower, VideoMAEModel.from_pretrained(bases["video"])),
        (model.model.audio_tower, HubertModel.from_pretrained(bases["hubert"])),
    ):
        theirs = base.state_dict()
        assert all(torch.equal(weight, theirs[name]) for name, weight in tower.encoder.state_dict().items())


def test_a_whisper_that_hears_two_seconds_of_thirty(bases):
    model, processor = built(audio={"from": bases["whisper"], "max_source_positions": 100})
    tower = model.model.audio_tower
    assert processor.inputs["audio"].chunk_seconds == 2.0
    assert tower.tokens_per_chunk == 100
    whole = built(audio=bases["whisper"])[0].model.audio_tower
    assert torch.equal(tower.encoder.conv1.weight, whole.encoder.conv1.weight)
    assert torch.equal(tower.encoder.embed_positions.weight, whole.encoder.embed_positions.weight[:100])


@torch.no_grad()
def test_layers_of_whisper_are_those_of_transformers(bases):
    from transformers import WhisperModel

    sound = torch.randn(1, 16, 3000)
    base = WhisperModel.from_pretrained(bases["whisper"]).encoder.eval()
    states = base(sound, output_hidden_states=True).hidden_states
    normed = [torch.nn.functional.layer_norm(state, (32,)) for state in states]
    for layers in ([1, 2], [1], [0, 2]):
        tower = built(audio={"from": bases["whisper"], "layers": layers})[0].model.audio_tower
        assert tower.width == 32 * len(layers)
        assert len(tower.encoder.layers) == max(layers)  # the others do not run
        torch.testing.assert_close(tower(sound), torch.cat([normed[layer] for layer in layers], -1))
    with pytest.raises(ConfigError, match=r"layers of the audio tower are \[3\]: name hidden states from 0"):
        built(audio={"from": bases["whisper"], "layers": [3]})


def test_fields_that_change_a_bases_shapes_are_refused(bases):
    with pytest.raises(ConfigError, match=r"whisper does not fit the tower: size mismatch for .*fc"):
        built(audio={"from": bases["whisper"], "encoder_ffn_dim": 64})
    with pytest.raises(ConfigError, match=r"model\.audio has no field 'max_positions'"):
        built(audio={"from": bases["whisper"], "max_positions": 100})


def test_a_sentence_encoder_reads_with_its_own_tokenizer(bases, tmp_path: Path):
    model, processor = built(text=bases["text"])
    assert model.config.space_tokenizer
    assert processor.space_tokenizer.tokenize("a red star") == ["a", "red", "star"]
    checkpoint.save(model, processor, tmp_path / "saved")
    embedder = Embedder(model, processor)
    again = Embedder(*checkpoint.load(tmp_path / "saved"))
    assert again.processor.space_tokenizer is not None
    vectors = embedder.embed_text(["a red star", "a blue star", "", "star " * 40])
    np.testing.assert_array_equal(vectors, again.embed_text(["a red star", "a blue star", "", "star " * 40]))
    assert embedder.fingerprint() == again.fingerprint()
    with torch.no_grad():
        from transformers import BertModel

        inputs = processor.space_tokenizer("a red star", return_tensors="pt")
        base = BertModel.from_pretrained(bases["text"]).eval()
        mean = base(**inputs).last_hidden_state.mean(1)
        theirs = torch.nn.functional.normalize(model.model.space.text_head(mean), dim=-1)
    np.testing.assert_allclose(vectors[:1], theirs.numpy(), atol=1e-5)


def test_a_multilingual_sentence_encoder_has_its_prefix(tmp_path: Path):
    """As multilingual-e5: XLM-RoBERTa, which wants "query: " before every text."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    tokenizer = sentence_tokenizer("query", ":", "ein", "roter", "Stern")
    tokenizer.save_pretrained(tmp_path / "e5")
    sizes = {"max_position_embeddings": 16, "pad_token_id": 0, "vocab_size": len(tokenizer)}
    XLMRobertaModel(XLMRobertaConfig(**sizes, **SMALL)).save_pretrained(tmp_path / "e5")
    text = {"from": str(tmp_path / "e5"), "prefix": "query: "}
    model, processor = built(text=text)
    checkpoint.save(model, processor, tmp_path / "saved")
    model, processor = checkpoint.load(tmp_path / "saved")
    ids = text_inputs(processor, ["ein roter Stern"], longest_text(model.config))["input_ids"][0]
    words = ["[CLS]", "query", ":", "ein", "roter", "Stern", "[SEP]"]
    assert processor.space_tokenizer.convert_ids_to_tokens(ids) == words
    assert longest_text(model.config) == 15
    plain = built(text=text["from"])[0]
    plain.load_state_dict(model.state_dict())
    vectors = [Embedder(each, processor).embed_text(["ein roter Stern " * 9]) for each in (model, plain)]
    np.testing.assert_array_equal(*vectors)
    with pytest.raises(ConfigError, match=r"model\.text\.prefix is for a text tower with its own tokenizer"):
        built(text=SETTINGS["text"] | {"prefix": "query: "})


# --- sides ----------------------------------------------------------------------------------------


def test_a_model_may_be_blind_or_deaf(tmp_path: Path):
    blind, processor = built(video=None)
    checkpoint.save(blind, processor, tmp_path / "blind")
    blind, processor = checkpoint.load(tmp_path / "blind")
    encoded = processor.encode(ask(clip(4), "what?"))
    assert processor.token_ids["video"] not in encoded.input_ids
    assert processor.token_ids["audio"] in encoded.input_ids
    assert blind(**processor.collate([encoded])).logits.isfinite().all()
    assert [row.modality for row in Embedder(blind, processor).windows(clip(4))] == ["audio"] * 2
    with pytest.raises(MediaError, match=r"model\.video is null"):
        processor.media(still(), "image")
    assert (
        processor.media(clip(4), "video").seen.line()
        == "2 windows, 0 frames, 4.0 of 4.0 s, sound, no picture"
    )
    deaf, processor = built(audio=None)
    encoded = processor.encode(ask(clip(4), "what?"))
    assert processor.token_ids["audio"] not in encoded.input_ids
    assert deaf(**processor.collate([encoded])).logits.isfinite().all()
    assert not encoded.media[0].seen.has_audio
    with pytest.raises(MediaError, match=r"model\.audio is null"):
        processor.media(clip(4, picture=False), "audio")
    with pytest.raises(ConfigError, match="the model has no side"):
        built(video=None, audio=None)


def test_a_tower_on_the_wrong_side_is_named():
    with pytest.raises(ConfigError, match="the side video has a whisper, which reads waveform"):
        built(video=SETTINGS["audio"])
    with pytest.raises(ConfigError, match=r"model\.text: the tower 'whisper' is no TextTower"):
        built(text=SETTINGS["audio"])
    with pytest.raises(ConfigError, match=r"model\.audio: no tower for 'wisper': did you mean whisper"):
        built(audio={"type": "wisper"})
    with pytest.raises(ConfigError, match="reads 2 frames at a time: take a multiple"):
        built(video=VIDEOMAE, frames_per_window=3)


def test_the_cut_is_known_before_there_is_a_model():
    assert window_spec(Model(**SETTINGS | BOTH)).image_size == 32
    assert (
        find_tower("hubert").tokens_in_window(built(**BOTH)[0].config.sides["audio"].tower, WindowSize(2, 2))
        == 99
    )


def test_what_earlier_versions_wrote_is_read():
    """The shipped checkpoint is one of theirs."""
    folder = checkpoint.find_shipped("nano")
    written = json.loads((folder / "config.json").read_text())
    assert "sides" not in written
    config = MllmConfig.from_pretrained(folder)
    assert config.sides["audio"].queries == written["audio_queries"]
    assert config.sides["video"].tower.image_mean == written["image_mean"]
    values = json.loads((folder / "processor_config.json").read_text())
    assert sides_of_processor(values) == config.described_sides()
    again = MllmConfig(**json.loads(config.to_json_string()))
    assert again.to_dict()["sides"] == config.to_dict()["sides"]


# --- a package of its own -------------------------------------------------------------------------

PACKAGE = '''
from transformers import ViTConfig, ViTModel
from mllm.models.towers import FrameTower

class ViTTower(FrameTower):
    """Each picture by itself."""

    config_class = ViTConfig
    encoder_class = ViTModel

    @classmethod
    def tokens_in_window(cls, config, window):
        return window.frames * (1 + (config.image_size // config.patch_size) ** 2)

    def encode(self, values):
        states = self.encoder(values.flatten(0, 1)).last_hidden_state
        return states.reshape(len(values), -1, self.width)
'''


def test_another_package_adds_a_tower_with_one_class(tmp_path: Path, monkeypatch):
    (tmp_path / "vivid_towers.py").write_text(PACKAGE)
    info = tmp_path / "vivid_towers-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vivid-towers\nVersion: 0\n")
    (info / "entry_points.txt").write_text(
        "[mllm.towers]\nvit = vivid_towers:ViTTower\nlost = nowhere:Lost\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    known_towers.cache_clear()
    try:
        model, processor = built(video={"type": "vit", "image_size": 32, "patch_size": 16, **SMALL})
        batch = processor.collate([processor.encode(ASKED[0])])
        assert model(**batch).loss.isfinite()
        assert model.model.video_tower.tokens_per_window == 10
        checkpoint.save(model, processor, tmp_path / "saved")
        assert isinstance(checkpoint.load(tmp_path / "saved")[1], MllmProcessor)
        with pytest.raises(ConfigError, match=r"the tower 'lost' \(nowhere:Lost\) cannot be imported"):
            find_tower("lost")
    finally:
        known_towers.cache_clear()
        find_tower.cache_clear()


def test_a_text_tower_is_no_tower_of_windows():
    assert issubclass(find_tower("bert", TextTower), TextTower)
    with pytest.raises(ConfigError, match="the tower 'bert' is no Tower"):
        find_tower("bert")


def test_a_frozen_encoder_sees_alike_in_training_and_after():
    """Batch normalisation in training would see a picture by the others of its batch."""
    model, _ = built(video=LITE)
    tower = model.model.video_tower
    for weight in tower.encoder.parameters():
        weight.requires_grad_(False)
    values = torch.rand(2, 2, 3, 48, 48)
    before = tower.encode(values)
    model.train()
    assert tower.mixer.training
    torch.testing.assert_close(tower.encode(values), before)
    tower.encoder.requires_grad_(True)
    assert model.train().model.video_tower.encoder.training
