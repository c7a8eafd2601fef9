"""The vLLM plugin: every vLLM process calls `register()` through the entry points `vllm.general_plugins`.

It registers the model class and a media connector (`connector`), which reads recordings as training does
(`recordings`), and adds the middleware (`api`) to the server.
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
    """Registers the model, its config, its processor and its media connector; safe to call again."""
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
    # Only servers have imported this module for their command line; others need no HTTP.
    if "vllm.entrypoints.launchers.cli_args" in sys.modules:
        vllm_api.attach(is_ours=lambda: served_processor() is not None)


@cache
def end_with_parent() -> None:
    """In a process of the engine: exit when the parent process is gone.

    vLLM tells its engine to stop, but if the parent is killed while the engine is still loading, the engine
    never learns of it and would hold memory and cores for good.
    """
    parent = multiprocessing.parent_process()
    if parent is None or not multiprocessing.current_process().name.startswith(("EngineCore", "VllmWorker")):
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="mllm-end-with-parent", daemon=True).start()


class CompactJson:
    """vLLM's hook for our model's configuration: forbids white space in grammar-guided JSON.

    JSON allows any white space between its fields, and a small model to which none of the allowed words is
    likely writes blanks up to its last token. vLLM can forbid that for one backend, but not if it chooses the
    backend by schema ("auto"); of the two that support it, guidance covers more of JSON Schema. Objects get
    only the properties of their schema, unless it asks for others: they might not end either.
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
