"""vLLM's way in: every vLLM process calls `register()`, through the entry point group `vllm.general_plugins`.

It names the model class and a media connector (`connector`), which reads recordings as training does
(`recordings`), and puts the middleware (`api`) in front of the server.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from functools import cache
from typing import Any

from mllm import log
from mllm.vllm import api as vllm_api
from mllm.vllm.recordings import served_processor

ARCHITECTURE = "MllmForConditionalGeneration"


def register() -> None:
    """Make vLLM know the model, its config, its processor and its media connector. Safe to call again."""
    log.set_up()
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    import mllm.models.processor  # noqa: F401  registers the config and the processor with transformers
    from mllm.vllm.connector import CONNECTOR  # its import registers it

    # Lazily, as a string: importing the model here would start torch's accelerator in every process.
    ModelRegistry.register_model(ARCHITECTURE, "mllm.vllm.model:MllmForVllm")
    MODELS_CONFIG_MAP[ARCHITECTURE] = CompactJson
    os.environ.setdefault("VLLM_MEDIA_CONNECTOR", CONNECTOR)
    end_with_parent()
    # Servers have read their command line with this module; workers and offline use need no HTTP.
    if "vllm.entrypoints.launchers.cli_args" in sys.modules:
        vllm_api.attach(is_ours=lambda: served_processor() is not None)


@cache
def end_with_parent() -> None:
    """In a process of the engine: end when the one that started it is gone, killed before it could say so.

    vLLM tells its engine to stop; from a parent that is killed while the engine still loads it never hears,
    and keeps memory and cores for good.
    """
    parent = multiprocessing.parent_process()
    if parent is None or not multiprocessing.current_process().name.startswith(("EngineCore", "VllmWorker")):
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="mllm-end-with-parent", daemon=True).start()


class CompactJson:
    """What vLLM asks about our model's configuration: JSON that a grammar guides is written without blanks.

    Between its fields JSON may hold any white space, and a small model that likes none of the words allowed
    goes on with blanks to its last token. vLLM can forbid that to one engine, not to its choice by schema
    ("auto"): of the two that it fits, guidance knows more of JSON Schema. An object holds the properties that
    its schema names, if that does not ask for others: else it need not end either.
    """

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        config = vllm_config.structured_outputs_config
        if config.backend == "auto":
            config.backend, config.disable_additional_properties = "guidance", True
        config.disable_any_whitespace |= config.backend in ("xgrammar", "guidance")

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Nothing to change."""
