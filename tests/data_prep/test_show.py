"""`mllm data show`: what is coloured, what is drawn, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_prep import show
from mllm.errors import MediaError, RecordError
from mllm.experiment import Model
from mllm.media.clip import Clip
from mllm.models import checkpoint
from mllm.records.chat import validate_messages
from tests.media_files import make, tone

FRAMES = np.full((8, 64, 64, 3), 200, np.uint8)
TONE = np.sin(np.arange(3 * 16_000) / 10).astype(np.float32) / 2


def clip(frames: bool = True, sound: bool = True, is_image: bool = False) -> Clip:
    times = np.arange(8) / 2 if frames else np.zeros(0)
    if is_image:
        return Clip(FRAMES[:1], np.zeros(1), None, 0.0, "image", is_image=True)
    return Clip(FRAMES if frames else None, times, TONE if sound else None, 4.0 if frames else 3.0, "clip")


def record(*parts: dict) -> dict:
    user = [*parts, {"type": "text", "text": "what is seen?"}]
    return {
        "id": "r1",
        "messages": [{"role": "user", "content": user}, {"role": "assistant", "content": "a red star."}],
        "task": "qa",
        "source": "test",
    }


@pytest.fixture(scope="module")
def processor():
    texts = ["what is seen? a red star moves left [00:02] while a bell rings"] * 20
    return checkpoint.build_model(Model(video_queries=3, audio_queries=2), texts)[1]


@pytest.fixture
def shown(processor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture):
    """Shows one record and returns what was printed and the contact sheet, if any."""

    def shown(given: dict) -> tuple[str, Path]:
        monkeypatch.setattr(checkpoint, "load_processor", lambda model: processor)
        monkeypatch.setattr(show, "_records", lambda name: iter([given]))
        out = tmp_path / "sheet.png"
        show.show("records.jsonl", row=1, model=None, out=out)
        return capsys.readouterr().out, out

    return shown


def test_the_prompt_is_printed_with_placeholders_counted(shown) -> None:
    printed, sheet = shown(record({"type": "video", "video": clip()}))
    window = "<|video|>×3<|audio|>×2"
    assert f"<|bos|><|user|>[00:00]{window}[00:02]{window}what is seen?<|end|>\n" in printed
    assert "<|assistant|>a red star.<|end|>\n" in printed
    assert "video: 2 windows, 8 frames, 4.0 of 4.0 s, picture and sound" in printed
    assert sheet.exists()


def test_exactly_the_trained_tokens_are_green(processor) -> None:
    encoded = processor.encode(record({"type": "audio", "audio": clip(frames=False)})["messages"])
    text = show.coloured(encoded, processor)
    green = [text.plain[span.start : span.end] for span in text.spans if "green" in str(span.style)]
    assert "".join(green) == "a red star.<|end|>"


def test_the_sheet_has_a_row_for_each_window_and_recording(shown) -> None:
    from PIL import Image

    def height(*parts: dict) -> int:
        return Image.open(shown(record(*parts))[1]).height

    sound_row = show.WAVEFORM + show.MARGIN
    video_row = show.THUMBNAIL + sound_row
    assert height({"type": "video", "video": clip()}) == 2 * video_row + show.MARGIN
    assert height({"type": "audio", "audio": clip(frames=False)}) == 2 * sound_row + show.MARGIN
    image = {"type": "image", "image": clip(is_image=True)}
    assert height(image, image) == 2 * (show.THUMBNAIL + show.MARGIN) + show.MARGIN


def test_a_record_without_media_draws_nothing(shown) -> None:
    printed, sheet = shown(record())
    assert "what is seen?" in printed
    assert not sheet.exists()


def test_records_are_picked_from_sources_and_missing_rows_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    first = show.pick("world:val", 1)
    assert validate_messages(first["messages"]).media
    monkeypatch.setattr(show, "_records", lambda name: iter([first]))
    with pytest.raises(RecordError, match="x.jsonl has 1 records: there is no row 2"):
        show.pick("x.jsonl", 2)


def test_a_written_world_is_shown_with_a_shipped_model(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Nothing stands in for anything here: real files, the real processor."""
    from data_prep.world.source import open_world
    from data_prep.world.write import write_world

    folder, sheet = tmp_path / "world", tmp_path / "sheet.png"
    write_world(folder, open_world("val,clips=1,media=av"), workers=1)
    show.show(str(folder / "records.jsonl"), row=1, model="nano", out=sheet)
    assert "<|assistant|>" in capsys.readouterr().out
    assert sheet.stat().st_size > 0


def test_the_sheet_goes_where_it_is_told_or_beside_its_records(
    shown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shown(record())  # sets what stands for the model and the file
    monkeypatch.setattr(show, "_records", lambda name: iter([record({"type": "video", "video": clip()})]))
    for folder in ("here", "data", "sheets"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    data, sheets = tmp_path / "data", tmp_path / "sheets"
    for out, written in [
        (None, data / "rows.row1.sheet.png"),
        (sheets, sheets / "rows.row1.sheet.png"),
        (sheets / "new", sheets / "new" / "rows.row1.sheet.png"),
        (sheets / "deep" / "a.png", sheets / "deep" / "a.png"),
    ]:
        show.show(str(data / "rows.jsonl"), row=1, model=None, out=out)
        assert written.stat().st_size > 0
        assert str(written) in capsys.readouterr().out
    show.show("world:val", row=1, model=None, out=None)
    assert "contact sheet: --out says where" in capsys.readouterr().out
    assert not list((tmp_path / "here").iterdir())


def test_a_sound_called_an_image_is_named(processor, tmp_path: Path) -> None:
    sound = make(
        tmp_path / "a.wav", codec=None, sounds=[tone(1, 16_000)], sound_codec="pcm_s16le", rate=16_000
    )
    with pytest.raises(MediaError, match="a.wav: it has no picture to take as an image: call it audio"):
        show.read(processor, "image", str(sound), {})
