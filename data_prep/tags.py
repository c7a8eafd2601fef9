"""Tags and placeholders that other training frameworks use for recordings in texts."""

from __future__ import annotations

import re

TAG = re.compile(r"\n?<(video|audio|image|speech)>\n?", re.IGNORECASE)  # LLaVA's, LLaMA-Factory's, ms-swift's
NUMBERED = re.compile(
    r"<\|?(video|audio|image|speech)[ _:-]?(\d+)\|?>", re.IGNORECASE
)  # <image_1>, <|image_1|>
# <|image_pad|>, <start_of_image>, </video>, <ImageHere>, [IMG], [image 1], {video}: each used by one model.
FOREIGN = re.compile(
    r"</?\|?[\w:/-]*(?:image|img|picture|video|vision|audio|speech|sound|media)[\w:/-]*\|?>"
    r"|\[(?-i:IMG|IMAGE|VIDEO|AUDIO|BEGIN_AUDIO)(?:_\w+)?\]"
    r"|\[(?:image|img|picture|video|audio)(?:[ _-]?\d+)?\](?!\()"  # before ( it is a link
    r"|\{+(?:image|img|picture|video|audio)s?(?:_?\d+)?\}+|</?\|?frames?\|?>",
    re.IGNORECASE,
)
