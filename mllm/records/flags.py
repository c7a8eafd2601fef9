"""Flags that mean "do not train on this", in the formats of many trainers.

A turn, or a whole row, is excluded from training if

    false or 0    stands under loss (ms-swift, XTuner, ChatGLM), weight (OpenAI, Mistral, axolotl), train,
                  training, train_on_turn (axolotl), loss_scale (ms-swift), output_with_loss (XTuner), kto_tag
                  (LLaMA-Factory) and their kin,
    true or 1     stands under masked (torchtune), mask, rejected, ignore and their kin,
    false         stands under label (KTO of TRL and ms-swift), which may be the number of a class, too.

null means nothing. A part of an answer cannot be excluded here, so a flag for only a part is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm.errors import ChatError

LEARNED = frozenset((
    *("loss", "loss_weight", "loss_scale", "loss_mask", "use_loss", "compute_loss", "calculate_loss"),
    *("weight", "output_with_loss", "train", "training", "trainable", "do_train"),
    *("train_on_turn", "train_on_output", "learn", "learned", "learnable", "supervised"),
    *("kto_tag", "desirable", "is_desirable"),
))  # fmt: skip
SPARED = frozenset((
    *("mask", "masked", "is_masked", "masked_out", "rejected", "is_rejected", "undesirable"),
    *("ignore", "ignored", "ignore_loss", "no_loss", "no_train", "skip", "skipped", "exclude", "excluded"),
    *("do_not_train", "dont_train"),
))  # fmt: skip
VERDICTS = frozenset(["label", "chosen", "accepted", "preferred"])  # true and false alone: others are content
IN_PARTS = frozenset(["train_detail", "training_detail"])  # axolotl's: offsets into a turn
FLAGS = LEARNED | SPARED | VERDICTS | IN_PARTS
_WORDS = {"true": True, "false": False}
_MORE_WORDS = _WORDS | {"yes": True, "1": True, "no": False, "0": False, "0.0": False}


def unlearned(fields: Mapping[str, Any]) -> str | None:
    """The flag that excludes a turn or a row from training, such as "'weight': 0"; None if there is none.

    Raises:
        ChatError: if only a part of it is excluded.
    """
    for key, value in fields.items():
        name = key.lower() if isinstance(key, str) else ""  # a table's header may say Label
        if name in FLAGS and _says(name, value) is (name in SPARED):
            return f"{key!r}: {str(value)[:40]}"
    return None


def _says(key: str, value: Any) -> bool | None:
    """Whether a flag is set; None if the value is not a flag, such as the file name of a mask."""
    if isinstance(value, (list, tuple)):
        parts = {_says(key, part.get("train") if isinstance(part, Mapping) else part) for part in value}
        if parts == {True, False}:
            raise ChatError(
                f"{key!r} leaves out a part of it: an answer is learned whole, or not at all ('loss': false)"
            )
        return parts.pop() if len(parts) == 1 else None
    if isinstance(value, str):
        return (_WORDS if key in VERDICTS else _MORE_WORDS).get(value.strip().lower())
    if isinstance(value, bool):
        return value
    return value > 0 if isinstance(value, (int, float)) and key not in VERDICTS else None
