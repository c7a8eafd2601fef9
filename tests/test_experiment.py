"""mllm.experiment: reading, overriding, and what errors say."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mllm.errors import ConfigError
from mllm.experiment import Experiment, experiment_type, load_experiment


@pytest.fixture
def load(tmp_path: Path):
    def load(text: str, overrides=()) -> Experiment:
        path = tmp_path / "e.yaml"
        path.write_text(text, encoding="utf-8")
        return load_experiment(path, overrides)

    return load


def test_an_empty_file_is_the_nano_size(load) -> None:
    assert load("") == load_experiment()
    assert load("").model.decoder["type"] == "llama"


def test_a_dump_reads_back_equal(load) -> None:
    experiment = load(
        "name: x\ninstruct: {lora: null, lr: 1e-3}\nmodel: {video: facebook/some-model, text: null}"
    )
    assert load(experiment.dump_yaml()) == experiment
    assert experiment.instruct.lr == 0.001


def test_experiments_share_no_state() -> None:
    load_experiment().model.video["hidden_size"] = 7
    load_experiment().model.qformer.width = 7
    assert load_experiment().model.video["hidden_size"] != 7
    assert load_experiment().model.qformer.width != 7


def test_a_section_is_found_by_its_type(load) -> None:
    from train.sections import Instruct, StageSection

    assert load("instruct: {lr: 1e-3}").section(Instruct).lr == 0.001
    with pytest.raises(
        ConfigError, match="no section of an experiment is train.sections.StageSection: install"
    ):
        load("").section(StageSection)


def test_overrides_are_typed_by_yaml_and_keep_the_rest(load) -> None:
    experiment = load(
        "seed: 1",
        [
            "instruct.lr=1e-4",
            "instruct.lora=null",
            "contrastive.train=[qformers, space]",
            "model.video.hidden_size=64",
            "model.audio=openai/whisper-small",
            "data.train=world:train,seed=3",
            "seed=5",
            "seed=6",
        ],
    )
    assert experiment.instruct.lr == 1e-4
    assert experiment.instruct.lora is None
    assert experiment.contrastive.train == ["qformers", "space"]
    assert experiment.model.video == load_experiment().model.video | {"hidden_size": 64}
    assert experiment.model.audio == "openai/whisper-small"
    assert experiment.data.train == "world:train,seed=3"
    assert experiment.seed == 6


def test_an_override_switches_an_optional_section_on(load) -> None:
    assert load("instruct: {lora: null}", ["instruct.lora.rank=4"]).instruct.lora.rank == 4


WRONG = [
    (
        "contrastive:\n  stepz: 3",
        r"e.yaml:2: unknown key 'contrastive.stepz': did you mean 'contrastive.steps'\?",
    ),
    (
        "model: {qformer: {widht: 3}}",
        r"unknown key 'model.qformer.widht': did you mean 'model.qformer.width'\?",
    ),
    ("caption_weight: 3", r"unknown key 'caption_weight': did you mean 'contrastive.caption_weight'\?"),
    (
        "model:\n  qformer: {zzz: 3}",
        "unknown key 'model.qformer.zzz': model.qformer knows width, layers, heads",
    ),
    ("contrastive:\n  stepz: 3\n  lr: -1", r"\(and 1 more\)"),
    ("instruct:\n  steps: abc", "e.yaml:2: instruct.steps is 'abc': input should be a valid integer"),
    ("instruct:\n  train: [towers]", "instruct.train.0 is 'towers': input should be 'video_tower'"),
    ("model: {window_seconds: 0}", "model.window_seconds is 0: input should be greater than 0"),
    ("model:\n  video: 3", "e.yaml:2: model.video is 3: input should be a valid string$"),
    (
        "model:\n  video: {hidden_size: 3}",
        "e.yaml:2: model.video: needs 'type', a transformers model type",
    ),
    ("name: a/b", "name is 'a/b'"),
    ("model: 3", "e.yaml:1: model is 3"),
    ("- a", "an experiment is `key: value` lines, not a list"),
    ("a: [1\nb: 2", "e.yaml:2: not YAML: expected"),
    ("name: a\n\nname: b", "e.yaml:3: not YAML: repeated key 'name'"),
    ("name: a\n\tseed: 1", "e.yaml:2: not YAML"),
]


@pytest.mark.parametrize(("text", "error"), WRONG)
def test_errors_name_file_line_key_and_remedy(load, text: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error) as caught:
        load(text)
    assert "\n" not in str(caught.value)


def test_overrides_are_judged_together(load) -> None:
    text = "data: {augment: {noise_snr: 20}}"
    changes = ["data.cache.folder=features", "data.augment=null"]
    assert load(text, changes).data.cache.folder == "features"
    with pytest.raises(ConfigError) as error:
        load(text, changes[:1])
    assert str(error.value).startswith(
        "overrides 'data.cache.folder=features': data: augment makes new recordings at every step"
    )


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("instruct.lr", "override 'instruct.lr' is not of the form a.b=value"),
        ("=3", "is not of the form a.b=value"),
        ("instruct..lr=3", "is not of the form a.b=value"),
        (
            "instruct.lrr=3",
            "override 'instruct.lrr=3': unknown key 'instruct.lrr': did you mean 'instruct.lr'",
        ),
        ("instuct.lr=3", "override 'instuct.lr=3': 'instuct' is not known: did you mean 'instruct'"),
        ("name.x=3", "override 'name.x=3': 'name' has no keys of its own"),
        ("seed=[1", r"override 'seed=\[1': not YAML"),
        ("seed=abc", "override 'seed=abc': seed is 'abc'"),
    ],
)
def test_errors_name_the_override(load, override: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        load("", [override])


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: no such file"):
        load_experiment(tmp_path / "none.yaml")


@pytest.mark.timeout(10)
def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "e.yaml")
    with pytest.raises(ConfigError, match=r"e.yaml: not an ordinary file but a pipe \(FIFO\)"):
        load_experiment(tmp_path / "e.yaml")


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_experiment(path)


def test_features_of_views_that_never_come_again_are_not_kept(load) -> None:
    with pytest.raises(ConfigError, match=r"e.yaml:1: data: augment makes new recordings at every step"):
        load("data: {cache: {}, augment: {crop: 0.2}}")
    assert load("data: {cache: {}, augment: {paraphrase: true, word_dropout: 0.1}}").data.cache is not None


@pytest.mark.parametrize(
    ("augment", "error"),
    [
        ("noise_snr: .nan", "noise_snr is nan: input should be a finite number"),
        ("noise_snr: -.inf", "noise_snr is -inf: input should be a finite number"),
        ("noise_snr: -1000", "noise_snr is -1000: input should be greater than or equal to -30"),
        ("pitch: .inf", "pitch is inf: input should be a finite number"),
        ("pitch: 120", "pitch is 120: input should be less than or equal to 12"),
        ("speed: 0.9", "speed is 0.9: input should be less than or equal to 0.5"),
        ("crop: .nan", "crop is nan: input should be a finite number"),
        ("time_mask: 1", "time_mask is 1: input should be less than 1"),
    ],
)
def test_no_view_is_drawn_beyond_what_makes_sense(load, augment: str, error: str) -> None:
    with pytest.raises(ConfigError, match=rf"e.yaml:3: data\.augment\.{error}$"):
        load(f"data:\n  augment:\n    {augment}")


MODULE = """
from mllm.experiment import Positive, Section

class Rerank(Section):
    depth: Positive = 10

number = 3
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch):
    """Puts a package on sys.path that declares one section of experiments, as pip would leave it."""

    def install(name: str, value: str) -> None:
        site = tmp_path / "site"
        info = site / "reranker-1.0.dist-info"
        info.mkdir(parents=True)
        (site / "reranker.py").write_text(MODULE)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: reranker\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[mllm.sections]\n{name} = {value}\n")
        monkeypatch.syspath_prepend(str(site))
        experiment_type.cache_clear()

    yield install
    experiment_type.cache_clear()
    sys.modules.pop("reranker", None)


def test_another_package_adds_a_section(load, install) -> None:
    install("rerank", "reranker:Rerank")
    experiment = load("rerank: {depth: 3}")
    from reranker import Rerank

    assert experiment.section(Rerank).depth == 3
    assert load("", ["rerank.depth=4"]).section(Rerank).depth == 4
    assert list(experiment.model_dump())[-2:] == ["serve", "rerank"]
    assert load(experiment.dump_yaml()) == experiment
    with pytest.raises(ConfigError, match=r"unknown key 'rerank.dept': did you mean 'rerank.depth'\?"):
        load("rerank: {dept: 3}")


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("model", "reranker:Rerank", "reranker has a section 'model' for experiments, a name that"),
        ("text", "reranker:Rerank", "has a section 'text' for experiments, a name that is taken"),
        (
            "rerank",
            "reranker:number",
            "is reranker:number, which is not a subclass of mllm",
        ),
        (
            "rerank",
            "reranker:Gone",
            "cannot be imported from reranker: AttributeError",
        ),
    ],
)
def test_a_section_that_cannot_be_used_says_whose_it_is(load, install, name, value, error) -> None:
    install(name, value)
    with pytest.raises(ConfigError, match=error):
        load("")
