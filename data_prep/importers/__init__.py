"""Official data sets, and the chat forms of peers, as conversation records.

An importer is one function, rows -> records, and nothing else; adding one is that function and a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data_prep.importers import captions, chats, speech, tvqa, video_qa
from data_prep.importers.job import Job, Record


@dataclass(frozen=True)
class Importer:
    """How a data set is read.

    Attributes:
        records: its function; the first line of the docstring says what to give it.
        fields: what its annotations must hold, for people.
    """

    records: Callable[[Job], Iterator[Record]]
    fields: str

    @property
    def about(self) -> str:
        return (self.records.__doc__ or "").partition("\n")[0]


TVQA = "qid, q, a0 … a4, answer_idx, ts, vid_name; <video>.srt | vid_name, sub | <video>: sub_text, sub_time"
CHATS = "messages | conversations | instruction, output | query, response | prompt, completion"

IMPORTERS: dict[str, Importer] = {
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
