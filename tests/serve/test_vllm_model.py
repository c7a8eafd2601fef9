"""The plugin's parts in this process: what the server does with a recording, without a server."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")

from mllm.errors import MediaError
from mllm.media.clip import Clip
from mllm.vllm import recordings
from mllm.vllm.connector import MediaRejected, MllmMediaConnector, RecordingIO
from mllm.vllm.plugin import register
from mllm.vllm.recordings import RecentFeatures, read_recording

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine_config(checkpoint):
    from vllm.engine.arg_utils import EngineArgs

    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    register()
    register()  # vLLM may load plugins several times in one process
    arguments = EngineArgs(model=str(checkpoint), dtype="float32", enforce_eager=True, max_model_len=1024)
    return arguments.create_engine_config()


@pytest.fixture(scope="module")
def multimodal(engine_config):
    """vLLM's processor for our model."""
    from vllm.multimodal import MULTIMODAL_REGISTRY

    return MULTIMODAL_REGISTRY.create_processor(engine_config.model_config)


@pytest.fixture(scope="module")
def served(engine_config, checkpoint):
    """The model as vLLM builds and loads it."""
    from safetensors.torch import load_file
    from vllm.config import set_current_vllm_config
    from vllm.distributed import destroy_distributed_environment, destroy_model_parallel
    from vllm.distributed.parallel_state import init_distributed_environment, initialize_model_parallel
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.network_utils import get_open_port

    with set_current_vllm_config(engine_config):
        method = f"tcp://127.0.0.1:{get_open_port()}"
        init_distributed_environment(1, 0, method, 0, backend="gloo")
        initialize_model_parallel(1, 1)
        model = initialize_model(vllm_config=engine_config)
        loaded = model.load_weights(load_file(checkpoint / "model.safetensors").items())
        assert loaded == {name for name, _ in model.named_parameters()}
        yield model
        destroy_model_parallel()
        destroy_distributed_environment()


def clip(seconds: float, picture: bool = True, sound: bool = True, seed: int = 0) -> Clip:
    random = np.random.default_rng(seed)
    times = np.arange(0, seconds, 0.25)
    frames = random.integers(0, 255, (len(times), 64, 64, 3), np.uint8) if picture else None
    waveform = random.normal(0, 0.1, round(16000 * seconds)).astype(np.float32) if sound else None
    return Clip(frames, times if picture else np.zeros(0), waveform, seconds, "in memory")


CLIPS = {
    "both": clip(3.0),
    "silent": clip(2.5, sound=False, seed=1),
    "sound": clip(4.5, picture=False, seed=2),
}


def test_prompt_and_embeddings_are_those_of_transformers(multimodal, served, reference):
    """The same ids; and in place of each placeholder the same vector."""
    from vllm.multimodal.utils import group_and_batch_mm_kwargs

    model, processor = reference
    image = clip(1.0, sound=False, seed=3)
    still = Clip(image.frames[:1], np.zeros(1), None, 0.0, "in memory", is_image=True)
    content = [{"type": "video", "video": CLIPS[name]} for name in ("both", "silent", "sound")]
    content += [{"type": "image", "image": still}, {"type": "audio", "audio": CLIPS["both"]}]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": "Which?"}]}]
    batch = processor.batch([messages])

    prompt = processor.tokenizer.encode(
        "<|bos|><|user|><|video|><|video|><|video|><|image|><|audio|>Which?<|end|><|assistant|>",
        add_special_tokens=False,
    )
    items = multimodal.info.parse_mm_data(
        {"video": [CLIPS["both"], CLIPS["silent"], CLIPS["sound"]], "image": still, "audio": [CLIPS["both"]]}
    )
    processed = multimodal(prompt, items)
    assert processed["prompt_token_ids"] == batch["input_ids"][0].tolist()

    ids = torch.tensor(processed["prompt_token_ids"])
    by_place = []
    for modality, ranges in processed["mm_placeholders"].items():
        by_place += [(place.offset, modality, index, place) for index, place in enumerate(ranges)]
    by_place.sort(key=lambda entry: entry[0])
    kwargs = [(modality, processed["mm_kwargs"][modality][index]) for _, modality, index, _ in by_place]
    embedded = []
    is_multimodal = torch.zeros(len(ids), dtype=torch.bool)
    with torch.inference_mode():
        for _, _, tensors in group_and_batch_mm_kwargs(kwargs):
            embedded += served.embed_multimodal(**tensors)
        for (offset, _, _, place), vectors in zip(by_place, embedded, strict=True):
            assert len(vectors) == place.get_num_embeds()
            is_multimodal[offset : offset + place.length] |= place.is_embed
        ours = served.embed_input_ids(ids, embedded, is_multimodal=is_multimodal)
        media = {
            name: batch[name] for name in ("pixel_values", "image_values", "input_features", "window_counts")
        }
        theirs = model.model.embed_tokens_and_media(batch["input_ids"], model.model.query_outputs(**media))[0]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_every_weight_is_loaded(served, reference):
    ours = dict(served.named_parameters())
    theirs = reference[0].state_dict()
    assert torch.equal(ours["video_qformer.queries"], theirs["model.video_qformer.queries"])
    assert torch.equal(
        ours["audio_tower.encoder.layers.0.fc1.weight"],
        theirs["model.audio_tower.encoder.layers.0.fc1.weight"],
    )
    assert torch.equal(
        ours["language_model.model.layers.1.mlp.down_proj.weight"],
        theirs["model.language_model.layers.1.mlp.down_proj.weight"],
    )
    assert not any(name.startswith("space") for name in ours)
    mapping = served.get_mm_mapping()
    assert mapping.language_model == ["language_model"]


def test_dummy_inputs_are_as_large_as_a_recording_can_be(multimodal, reference):
    processor = reference[1]
    counts = {"video": 1, "audio": 1, "image": 1}
    most = multimodal.info.get_mm_max_tokens_per_item(1024, counts)
    dummy = multimodal.get_dummy_mm_inputs(counts)
    embeds = {name: places[0].get_num_embeds() for name, places in dummy["mm_placeholders"].items()}
    assert embeds == dict(most)
    assert most["video"] == processor.max_windows * sum(processor.queries.values())


def test_what_python_callers_may_give(multimodal, media):
    from PIL import Image

    wav = (media / "low.wav").read_bytes()
    samples = np.zeros(16000, np.float32)
    items = multimodal.info.parse_mm_data(
        {
            "audio": [wav, media / "low.wav", (samples, 16000), samples, None],
            "image": Image.open(media / "red.png"),
        }
    )
    first, second, *_, last = items["audio"].data
    assert first.digest == second.digest == items["audio"].get_item_for_hash(0)
    assert last is None
    assert len(items["image"]) == 1
    with pytest.raises(MediaError, match="give a path, bytes or a Clip"):
        multimodal.info.parse_mm_data({"video": [3]})


# --- the connector --------------------------------------------------------------------------------


@pytest.fixture
def connector(multimodal, media) -> MllmMediaConnector:
    return MllmMediaConnector(allowed_local_media_path=str(media))


def test_a_link_put_in_after_the_check_is_not_followed(reference, media, tmp_path):
    link = tmp_path / "late.wav"
    link.symlink_to(media / "low.wav")
    with pytest.raises(MediaError, match="not an ordinary file"):
        RecordingIO(reference[1], "audio").load_file(link)


def test_recordings_are_read_once(connector, media, reference, monkeypatch):
    url = f"file://{media}/high.flac"
    first = connector.fetch_audio(url)
    monkeypatch.setattr(type(reference[1]), "media", None)
    assert connector.fetch_audio(url).features is first.features


def test_features_for_other_settings_are_computed_again(connector, media, reference):
    processor = reference[1]
    recording = connector.fetch_video(f"file://{media}/red_low.mp4", video_processor=None)
    assert recording.features_for(processor) is recording.features
    sides = processor.sides | {"video": processor.sides["video"] | {"image_size": 32}}
    other = type(processor)(processor.tokenizer, sides=sides, window_seconds=1.0)
    features = recording.features_for(other)
    assert features.pixel_values.shape[-1] == 32
    assert len(features.layout) == 3


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("data:audio/wav;base64,!!!", "base64"),
        ("data:audio/wav,plain", "it is text, not a recording"),
        ("file:///etc/hostname", "allowed"),
        ("gopher://example.org/x.wav", "URL"),
    ],
)
def test_rejections_are_one_line_with_status_400(connector, url, says):
    with pytest.raises(MediaRejected, match=says) as caught:
        connector.fetch_audio(url)
    assert caught.value.parameter == "audio_url"
    assert "\n" not in str(caught.value)


def test_more_allowed_folders(connector, tmp_path, media, monkeypatch):
    (tmp_path / "x.wav").write_bytes((media / "low.wav").read_bytes())
    with pytest.raises(MediaRejected, match="allowed"):
        connector.fetch_audio(f"file://{tmp_path}/x.wav")
    monkeypatch.setenv("MLLM_ALLOWED_MEDIA", os.pathsep.join(["/nonexistent", str(tmp_path)]))
    assert connector.fetch_audio(f"file://{tmp_path}/x.wav").digest


def test_limits_come_from_the_environment(reference, media, monkeypatch):
    processor = reference[1]
    monkeypatch.setenv("MLLM_MAX_MEDIA_BYTES", "1000")
    with pytest.raises(MediaError, match="takes up to 0.001 MB"):
        RecordingIO(processor, "audio").load_bytes(bytes(2000))
    with pytest.raises(MediaError, match="more than the limit of 0.001 MB"):
        RecordingIO(processor, "audio").load_base64("audio/wav", "A" * 3000)
    with pytest.raises(MediaError, match="takes up to 0.001 MB"):
        read_recording(processor, media / "low.wav", "audio")
    monkeypatch.setenv("MLLM_MAX_MEDIA_BYTES", "many")
    with pytest.raises(ValueError, match="MLLM_MAX_MEDIA_BYTES is 'many'"):
        RecordingIO(processor, "audio")


def test_other_models_keep_the_stock_connector(media, monkeypatch):
    monkeypatch.setattr(recordings, "_processor", None)
    connector = MllmMediaConnector(allowed_local_media_path=str(media))
    assert connector.fetch_image(f"file://{media}/red.png").size == (96, 96)


def test_cache_forgets_the_oldest(reference):
    processor = reference[1]
    features = [processor.media(clip(2.0, seed=seed), "video") for seed in range(3)]
    size = features[0].pixel_values.nbytes + features[0].input_features.nbytes
    cache = RecentFeatures(max_bytes=2 * size)
    for number, item in enumerate(features):
        cache.put((number,), item)
        cache.get((0,))
    assert cache.get((0,)) is features[0]
    assert cache.get((1,)) is None
    assert cache.get((2,)) is features[2]


def test_folder_is_no_file(reference, tmp_path):
    with pytest.raises(MediaError, match="is a folder"):
        read_recording(reference[1], Path(tmp_path), "video")


def test_an_adapters_weights_fit_modules_or_are_refused(served):
    """In whatever way an adapter reaches vLLM, this maps the names of its weights."""
    names = served.hf_to_vllm_mapper.get_rename_mapper()
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"):
        mapped = names.map_name(f"model.language_model.layers.0.{name}.lora_A.weight")
        assert mapped == f"language_model.model.layers.0.{name}.lora_A.weight"
    for name in (
        "model.layers.0.self_attn.q_proj",  # of the decoder alone
        "model.language_model.layers.0.q_proj",
        "model.audio_tower.encoder.layers.0.self_attn.q_proj",
        "model.video_projector.linear_in",
    ):
        with pytest.raises(ValueError, match=f"{name}.lora_A.weight of the adapter fits no module"):
            names.map_name(f"{name}.lora_A.weight")


def test_weights_of_another_model_are_named(served, checkpoint):
    from safetensors.torch import load_file

    weights = load_file(checkpoint / "model.safetensors")
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    wrong = weights | {name: weights[name][:-1]}
    with pytest.raises(ValueError, match=rf"{checkpoint}: {name} is .* and config.json asks for"):
        served.load_weights(wrong.items())
    del weights[name]
    with pytest.raises(ValueError, match=f"{checkpoint}: 1 weights are missing, {name} for one"):
        served.load_weights(weights.items())
