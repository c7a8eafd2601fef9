"""Imports official data sets, plain formats and the chat formats of other frameworks as conversation records.

An importer is a function from rows to records. It is added by that function and a line here, or in another
package by an entry point of the group `mllm.importers`: `street-qa = "streets:street_qa"` names the function,
or an `Importer` with further settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points

from data_prep.importers import captions, chats, moments, plain, speech, spoken, tvqa, video_qa
from data_prep.importers.columns import ROLES
from data_prep.importers.job import Job, Record
from mllm.errors import ConfigError

__all__ = ["IMPORTERS", "Importer", "Job", "Record", "all_importers", "find_importer"]
GROUP = "mllm.importers"  # entry points of other packages


@dataclass(frozen=True)
class Importer:
    """How a data set is read.

    Attributes:
        records: the function; the first line of its docstring describes the input in `mllm data formats`.
        fields: the fields that annotations need, for display.
        roles: column roles that --columns may assign.
        files: names of annotation files without a suffix, such as Kaldi's `text`.
        beside: whether recordings lie beside the annotations, unless --media is given.
    """

    records: Callable[[Job], Iterator[Record]]
    fields: str
    roles: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    beside: bool = False

    @property
    def about(self) -> str:
        return (self.records.__doc__ or "").partition("\n")[0]


TVQA = "qid, q, a0 … a4, answer_idx, ts, vid_name; <video>.srt | vid_name, sub | <video>: sub_text, sub_time"
CHATS = "messages | conversations | instruction, output | query, response | prompt, completion"

TABLE = "file; answer | text | caption; question, options, start, end | duration, id, labels"

IMPORTERS: dict[str, Importer] = {
    "table": Importer(plain.table, TABLE, roles=ROLES, beside=True),
    "folders": Importer(plain.folders, "<class>/<recording> | train/<class>/<recording>"),
    "coco-captions": Importer(
        plain.coco_captions, "images, annotations: image_id, caption | images: sentences"
    ),
    "subtitles": Importer(spoken.subtitles, "<recording> with <recording>.srt, .vtt or .ass", beside=True),
    "ljspeech": Importer(spoken.ljspeech, "metadata.csv: id|text|normalised text (no header)", beside=True),
    "kaldi": Importer(
        spoken.kaldi, "text, wav.scp; segments, utt2spk, spk2gender", files=spoken.KALDI, beside=True
    ),
    "moments": Importer(
        moments.moments,
        "query, vid, relevant_windows | spans | start, end; <video> <start> <end>##<query>",
        roles=tuple(moments.NAMES),
        beside=True,
    ),
    "msrvtt-qa": Importer(video_qa.msrvtt_qa, "question, answer, video_id, id | video_name, question_id"),
    "msvd-qa": Importer(video_qa.msvd_qa, "question, answer, video_id, id | video_name, question_id"),
    "activitynet-qa": Importer(video_qa.activitynet_qa, "video_name, question, question_id; answer, type"),
    "nextqa": Importer(video_qa.nextqa, "video, question, answer, qid, type; of a choice a0 … a4"),
    "music-avqa": Importer(
        video_qa.music_avqa, "video_id, question_id, question_content, templ_values, anser"
    ),
    "tgif-qa": Importer(video_qa.tgif_qa, "gif_name, question, answer; of a choice a1 … a5"),
    "tvqa": Importer(tvqa.tvqa, TVQA),
    "tvqa-plus": Importer(tvqa.tvqa, TVQA),
    "msrvtt-captions": Importer(
        captions.msrvtt_captions, "sentences: video_id, caption | video_id, sentence; train_list.txt"
    ),
    "webvid": Importer(captions.webvid, "videoid, name, page_dir"),
    "howto100m": Importer(captions.howto100m, "<video>: start, end, text"),
    "audiocaps": Importer(captions.audiocaps, "audiocap_id, youtube_id, start_time, caption"),
    "clotho": Importer(captions.clotho, "file_name, caption_1 … caption_5"),
    "vggsound": Importer(captions.vggsound, "youtube id, start, label, split (no header)"),
    "flickr8k-audio": Importer(captions.flickr8k_audio, "<wav> <jpg> #<n>; <jpg>#<n> TAB caption"),
    "crema-d": Importer(speech.crema_d, "file names: 1001_DFA_ANG_XX.wav; summaryTable.csv"),
    "iemocap": Importer(speech.iemocap, "[start - end] turn emotion [v, a, d]"),
    "ravdess": Importer(speech.ravdess, "file names: 03-01-06-01-02-01-12.wav"),
    "emodb": Importer(speech.emodb, "file names: 03a01Fa.wav"),
    "meld": Importer(speech.meld, "Utterance, Speaker, Emotion, Sentiment, Dialogue_ID, Utterance_ID"),
    "fsdd": Importer(speech.fsdd, "file names: 7_jackson_32.wav"),
    "chats": Importer(chats.chats, CHATS),
    "llava": Importer(chats.chats, CHATS),
    "sharegpt": Importer(chats.chats, CHATS),
    "llama-factory": Importer(chats.chats, CHATS),
    "ms-swift": Importer(chats.chats, CHATS),
    "alpaca": Importer(chats.chats, CHATS),
}


def all_importers() -> dict[str, Importer | EntryPoint]:
    """The importers of this package and, not yet loaded, those of other packages.

    Raises:
        ConfigError: the name of another package's importer is already taken.
    """
    found: dict[str, Importer | EntryPoint] = dict(IMPORTERS)
    for entry in entry_points(group=GROUP):
        if entry.name in found:
            raise ConfigError(
                f"{_owner(entry)} has an importer {entry.name!r}, a name that is taken: rename it there, or "
                "take that package away"
            )
        found[entry.name] = entry
    return found


def find_importer(name: str) -> Importer:
    """Finds and loads an importer by name.

    Raises:
        ConfigError: there is no importer of that name, or it cannot be loaded.
    """
    known = all_importers()
    if name not in known:
        near = get_close_matches(name.lower().replace("_", "-"), known, n=1)
        meant = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"no format {name!r}: {meant}known are {', '.join(known)}")
    return loaded(known[name])


def loaded(importer: Importer | EntryPoint) -> Importer:
    """Loads an importer if it belongs to another package.

    Raises:
        ConfigError: it cannot be imported, or is not an importer.
    """
    if isinstance(importer, Importer):
        return importer
    try:
        found = importer.load()
    except Exception as error:  # another package's import may fail in any way
        raise ConfigError(
            f"importer {importer.name!r} of {_owner(importer)} cannot be imported "
            f"({type(error).__name__}: {error}): mend that package, or take it away"
        ) from error
    if isinstance(found, Importer):
        return found
    if not callable(found):
        raise ConfigError(
            f"importer {importer.name!r} of {_owner(importer)} must be a function of a Job, or an Importer"
        )
    return Importer(found, f"see {_owner(importer)}")


def _owner(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "another package"
