"""Starting, waiting, stopping and failing, with a small program in vLLM's place."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mllm.command import cli
from mllm.errors import ConfigError, MllmError
from serve import engine_settings
from serve.launcher import Server, ServerError
from serve.vllm_log import how_it_ended, last_error, last_line

QUERY = "model.language_model.layers.0.self_attn.q_proj"
FAKE = """
import http.server, os, pathlib, signal, subprocess, sys, tempfile
arguments = sys.argv[1:]
print("WARNING 11-27 09:31:13 [system_utils.py:255] limits cause `OSError: [Errno 24] Too many open files`.")
if "--fail" in arguments:
    print("(EngineCore pid=7) ERROR 11-21 09:31:13 [core.py:5] ValueError: the model is too large")
    sys.exit(3)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("temporary", tempfile.mkstemp()[1])
print("child", child.pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/crash":
            pathlib.Path(os.environ["MLLM_IN_FLIGHT"], "7-0").write_text("video of 4,096 bytes")
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.path == "/fail":
            print("ERROR 11-27 09:31:14 [core.py:9] RuntimeError: no space left", flush=True)
            os._exit(1)
        self.send_response(200); self.end_headers()
    def log_message(self, *a): pass
http.server.HTTPServer(("127.0.0.1", int(arguments[arguments.index("--port") + 1])), Handler).serve_forever()
"""


class FakeServer(Server):
    """A server that is up at once, with a child process as vLLM has."""

    def command(self) -> list[str]:
        return [sys.executable, "-c", FAKE, *self.flags]

    def warm_up(self) -> None:
        """It has no model to warm."""


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "my-model"
    folder.mkdir()
    for name in ("processor_config", "tokenizer_config", "tokenizer", "generation_config"):
        (folder / f"{name}.json").write_text("{}")
    (folder / "config.json").write_text('{"model_type": "mllm"}')
    save_file({f"{QUERY}.weight": np.zeros((8, 8), np.float32)}, folder / "model.safetensors")
    return folder


def write_adapter(folder: Path, base: Path, module: str = QUERY, **settings) -> Path:
    """An adapter of rank 12 for one module."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"base_model_name_or_path": str(base), "r": 12, "target_modules": ["q_proj"]} | settings
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    sides = {"lora_A": np.zeros((12, 8), np.float32), "lora_B": np.zeros((8, 12), np.float32)}
    keys = {f"base_model.model.{module}.{side}.weight": values for side, values in sides.items()}
    save_file(keys, folder / "adapter_model.safetensors")
    return folder


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def wait_until_gone(pid: int) -> bool:
    for _ in range(50):
        if not alive(pid):
            return True
        time.sleep(0.1)
    return False


def test_start_and_stop_leave_nothing(folder):
    server = FakeServer(folder, port=0)
    with server:
        assert server.healthy()
        assert server.port > 0
        child = int(last_line(server.log).split()[1])
        assert alive(child)
        log = server.log
        temporary = Path(log.read_text().split("temporary ")[1].split()[0])
        assert temporary.exists()
    assert wait_until_gone(child)
    assert not temporary.exists()
    assert not server.healthy()
    assert not log.exists()
    server.stop()  # again: nothing to do


def test_says_why_vllm_did_not_start(folder):
    server = FakeServer(folder, port=0, flags=["--fail"])
    with pytest.raises(ServerError, match="ValueError: the model is too large"):
        server.start()
    assert server.log.exists()


def test_says_when_vllm_dies_later(folder):
    with FakeServer(folder, port=0) as server:
        os.killpg(server.process.pid, signal.SIGKILL)
        with pytest.raises(ServerError, match=r"vLLM ended: signal 9 \(SIGKILL, killed from outside"):
            server.wait()


def visit(url: str) -> None:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
        pass


def test_says_which_signal_and_what_was_being_read(folder):
    with FakeServer(folder, port=0) as server:
        visit(f"{server.url}/crash")
        with pytest.raises(ServerError) as caught:
            server.wait()
    said = str(caught.value)
    assert "signal 11 (SIGSEGV, a crash in native code): Segmentation fault in" in said
    assert "it was reading video of 4,096 bytes" in said
    assert "Too many open files" not in said


def test_says_the_error_and_not_a_warning_from_the_start(folder):
    with FakeServer(folder, port=0) as server:
        visit(f"{server.url}/fail")
        with pytest.raises(ServerError, match="exit status 1: RuntimeError: no space left"):
            server.wait()


def test_port_in_use(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="choose another --port"):
            FakeServer(folder, port=taken.getsockname()[1]).start()


def test_serve_forever_ends_on_sigterm(folder, tmp_path):
    program = tmp_path / "run.py"
    program.write_text(
        f"import sys\nsys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        "from test_launcher import FakeServer\nfrom serve.supervise import serve_forever\n"
        f"sys.exit(serve_forever(FakeServer({str(folder)!r}, port=0)))\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline().startswith("curl http://127.0.0.1:")
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    assert children
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "is served at" in errors
    assert all(wait_until_gone(int(pid)) for pid in children)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells the child on Linux alone")
def test_killed_launcher_takes_vllm_with_it(folder, tmp_path):
    program = tmp_path / "run.py"
    program.write_text(
        f"import sys\nsys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        "from test_launcher import FakeServer\n"
        f"server = FakeServer({str(folder)!r}, port=0)\nserver.start()\n"
        "print(server.process.pid, flush=True)\n"
        "server.wait()\n"
    )
    process = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    assert wait_until_gone(pid)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(engine_settings, "vllm_is_for_cpu", lambda: True)
    for name in ("HF_HUB_OFFLINE", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "VLLM_CPU_KVCACHE_SPACE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(engine_settings, "vllm_is_for_cpu", lambda: False)


def test_command_on_a_cpu(folder, on_cpu):
    server = Server(folder, flags=["--max-model-len", "512"], allowed_media=[folder], max_media_mb=5)
    command = server.command()
    assert command[1:5] == ["-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    assert command[-2:] == ["--max-model-len", "512"]
    assert command[command.index("--max-num-seqs") + 1] == "64"
    assert "--disable-uvicorn-access-log" in command
    assert "--enforce-eager" not in command  # compiled
    assert command[command.index("--served-model-name") + 1] == "my-model" == server.model
    assert command[command.index("--allowed-local-media-path") + 1] == str(folder)
    variables = server.variables()
    assert variables["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert variables["VLLM_MEDIA_CONNECTOR"] == "mllm"
    assert variables["MLLM_MAX_MEDIA_BYTES"] == "5000000"


def test_what_is_fetched_is_said_in_the_environment(folder, on_cpu):
    assert not {name for name in Server(folder).variables() if "FETCH" in name or "PRIVATE" in name}
    variables = Server(folder, media_fetch_seconds=7.5, allow_private_media=True).variables()
    assert variables["MLLM_MEDIA_FETCH_SECONDS"] == "7.5"
    assert variables["MLLM_ALLOW_PRIVATE_MEDIA"] == "1"


def test_flags_about_fetching(folder, monkeypatch):
    served = []
    monkeypatch.setattr("serve.supervise.serve_forever", lambda server, restarts: served.append(server) or 0)
    domains = ["--allowed-media-domains", "a.org", "b.org"]  # vLLM's own flag
    with pytest.raises(SystemExit):
        cli.main(["serve", str(folder), *domains, "--allow-private-media", "--media-fetch-seconds", "9"])
    (server,) = served
    assert (server.allow_private_media, server.media_fetch_seconds) == (True, 9.0)
    assert list(server.flags)[:3] == domains


def test_command_on_a_gpu_leaves_vllm_its_defaults(folder, on_gpu):
    server = Server(folder)
    assert server.command()[3:] == ["--model", str(folder), "--served-model-name", "my-model"]
    assert "VLLM_CPU_KVCACHE_SPACE" not in server.variables()


@pytest.mark.parametrize(
    "flag", ["--block-size=64", "--block_size=64", "--enforce-eager", "--max-num-seqs=8"]
)
def test_given_flags_win(folder, on_cpu, flag):
    command = Server(folder, flags=[flag, "--served-model-name=other"], fast_start=True).command()
    name = flag.split("=")[0].replace("_", "-")
    assert [word for word in command if word.split("=")[0].replace("_", "-") == name] == [flag]
    assert Server(folder, flags=["--served-model-name=other"]).model == "other"


def test_the_engine_on_a_cpu_has_its_worker_inside_and_threads_that_sleep(folder, on_cpu):
    variables = Server(folder).variables()
    assert variables["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert variables["OMP_WAIT_POLICY"] == "PASSIVE"
    assert variables["VLLM_USE_AOT_COMPILE"] == "0"  # inductor's cache makes later starts short
    assert variables["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    "flags", [["-tp", "2"], ["--pipeline-parallel-size=2"], ["--tensor_parallel_size", "2"]]
)
def test_several_workers_keep_their_processes(folder, on_cpu, flags):
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in Server(folder, flags=flags).variables()
    one = [flags[0].split("=")[0], "1"]
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" in Server(folder, flags=one).variables()


@pytest.mark.parametrize("flags", [["--data-parallel-size", "2"], ["-dp=2"]])
def test_several_engines_have_their_workers_inside_too(folder, on_cpu, flags):
    server = Server(folder, flags=flags)
    command = server.command()
    assert command[command.index("--distributed-executor-backend") + 1] == "uni"
    assert server.variables()["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert "2 engines" in server.choices()
    assert "uni" not in Server(folder, flags=[*flags, "-tp", "2"]).command()
    assert "uni" not in Server(folder).command()


@pytest.mark.parametrize(
    ("name", "value"),
    [("VLLM_ENABLE_V1_MULTIPROCESSING", "1"), ("OMP_NUM_THREADS", "2"), ("OMP_WAIT_POLICY", "ACTIVE")],
)
def test_what_the_user_sets_in_the_environment_wins(folder, on_cpu, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert name not in Server(folder).variables()
    monkeypatch.delenv(name)
    assert Server(folder, environment={name: value}).variables()[name] == value


@pytest.mark.parametrize(
    ("width", "cores", "threads"), [(128, 2, 1), (576, 2, 1), (1024, 2, 2), (2048, 2, 2), (4096, 16, 8)]
)
def test_threads_follow_the_width_of_the_decoder(folder, on_cpu, monkeypatch, width, cores, threads):
    (folder / "config.json").write_text(json.dumps({"text_config": {"hidden_size": width}}))
    monkeypatch.setattr(engine_settings, "cores", lambda: cores)
    server = Server(folder)
    assert server.variables()["OMP_NUM_THREADS"] == str(threads)
    assert f"OMP_NUM_THREADS={threads} for a decoder {width} wide" in server.choices()


@pytest.mark.parametrize(
    ("flags", "fast_start", "compiled"),
    [
        ([], False, True),
        ([], True, False),
        (["--enable-lora"], False, False),
        (["--enforce-eager"], False, False),
        (["--no-enforce-eager"], True, True),
    ],
)
def test_compiled_unless_lora_or_a_fast_start_is_wanted(folder, on_cpu, flags, fast_start, compiled):
    server = Server(folder, flags=flags, fast_start=fast_start)
    assert server.compiled == compiled
    assert ("--enforce-eager" in server.command()) != compiled


def test_adapter_folder_is_served_beside_its_base(folder, on_cpu):
    tuned = write_adapter(folder.parent / "tuned", folder)
    command = Server(tuned).command()
    assert command[command.index("--model") + 1] == str(folder)
    assert command[command.index("--lora-modules") + 1] == f"tuned={tuned}"
    assert command[command.index("--max-lora-rank") + 1] == "16"
    assert command[command.index("--served-model-name") + 1] == "tuned-base"
    assert "--enforce-eager" in command  # vLLM does not compile with LoRA


WAYS = {
    "a pair": lambda path: ["--lora-modules", f"mine={path}"],
    "the second of two": lambda path: ["--lora-modules", f"good={path.parent / 'good'}", f"mine={path}"],
    "one word": lambda path: [f"--lora_modules=mine={path}"],
    "JSON": lambda path: ["--lora-modules", json.dumps({"name": "mine", "path": str(path)})],
    "by modality": lambda path: ["--default-mm-loras", json.dumps({"video": str(path)})],
    "a modality's own": lambda path: ["--default-mm-loras.video", str(path)],
    "a file": lambda path: ["--config", str(path.parent / "vllm.yaml")],
    "the checkpoint": lambda path: [],
}


@pytest.mark.parametrize("way", WAYS)
def test_an_adapter_that_fits_nothing_is_refused_before_vllm_starts(folder, tmp_path, on_cpu, way):
    write_adapter(tmp_path / "good", folder)
    bad = write_adapter(tmp_path / "bad", folder, QUERY.replace("model.language_model.", "model."))
    (tmp_path / "vllm.yaml").write_text(f"enable-lora: true\nlora-modules: mine={bad}\n")
    server = Server(folder if WAYS[way](bad) else bad, flags=["--enable-lora", *WAYS[way](bad)])
    with pytest.raises(MllmError, match=r"2 of 2 weights fit no module .*base_model.model.model.layers.0"):
        server.command()
    write_adapter(bad, folder)
    server.command()


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"modules_to_save": ["q_proj"]}])
def test_an_adapter_that_vllm_takes_by_half_is_refused(folder, tmp_path, on_cpu, settings):
    write_adapter(tmp_path / "tuned", folder, **settings)
    with pytest.raises(MllmError, match="DoRA|holds nothing"):
        Server(folder, flags=["--lora-modules", f"mine={tmp_path / 'tuned'}"]).command()


def test_an_adapter_that_is_not_there_is_told(folder, on_cpu):
    with pytest.raises(MllmError, match=r"/no/such cannot be read"):
        Server(folder, flags=["--lora-modules", "mine=/no/such"]).command()
    with pytest.raises(MllmError, match=r"--lora-modules is '\[\]': give NAME=FOLDER"):
        Server(folder, flags=["--lora-modules", "[]"]).command()


def test_a_damaged_checkpoint_is_told_before_vllm_starts(folder, on_cpu):
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(MllmError, match="model.safetensors is cut or damaged"):
        Server(folder).command()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--dtype", "float32", "CKPT"], "'CKPT' stands behind flags"),
        (["--enforce-eager", "CKPT"], "'CKPT' stands behind flags"),
        (["CKPT", "--dtype", "float32", "other"], "'other' stands behind flags"),
        (["CKPT", "--model", "other"], "two checkpoints, CKPT and --model other"),
        (["--model", "/no/such/folder"], "no checkpoint at /no/such/folder"),
        (["--model", ""], "name is empty"),
        (["CKPT", "--config", "FILE"], "vllm.yaml names the model other"),
    ],
)
def test_no_checkpoint_is_passed_over_for_the_one_that_ships(folder, on_cpu, capsys, words, says):
    (folder / "vllm.yaml").write_text("model: other\n")
    named = {"CKPT": str(folder), "FILE": str(folder / "vllm.yaml")}
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", *[named.get(word, word) for word in words]])
    assert ended.value.code == 2
    assert says.replace("CKPT", str(folder)) in capsys.readouterr().err


def test_model_names_the_checkpoint(folder, monkeypatch):
    served = []
    monkeypatch.setattr("serve.supervise.serve_forever", lambda server, *_: served.append(server) or 0)
    names = ["--served-model-name", "a", "b"]
    for words in (["--model", str(folder), *names], [f"--model={folder}", *names], [str(folder), *names]):
        with pytest.raises(SystemExit):
            cli.main(["serve", *words])
    assert [(str(server.checkpoint), list(server.flags)[:3]) for server in served] == [
        (str(folder), names)
    ] * 3


def test_missing_checkpoint(on_cpu, tmp_path):
    with pytest.raises(MllmError, match="no checkpoint at"):
        Server(tmp_path / "nothing").command()


def test_without_vllm(folder, monkeypatch):
    def missing(name):
        raise engine_settings.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(engine_settings.importlib.metadata, "distribution", missing)
    monkeypatch.setattr(engine_settings.importlib.metadata, "version", missing)
    with pytest.raises(ConfigError, match="serve-cpu"):
        Server(folder).command()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["api_server.py: error: unrecognized arguments: --foo"], "error: unrecognized arguments: --foo"),
        (
            [
                "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
                "  Value error, max_model_len (9999) is greater than 1024 [type=value_error, input=…]",
            ],
            "Value error, max_model_len (9999) is greater than 1024",
        ),
        (
            [
                "(EngineCore pid=1) ERROR [core.py:9] ValueError: not enough memory",
                "RuntimeError: Engine core initialization failed. See root cause above.",
            ],
            "ValueError: not enough memory",
        ),
        (
            [
                "(EngineCore pid=1) ERROR [core.py:9] ValueError: not enough memory",
                "WARNING 11-27 16:52:07 [utils.py:255] like `OSError: [Errno 24] Too many open files`.",
            ],
            "ValueError: not enough memory",
        ),
        (["loading …", "Killed"], "Killed"),
        ([], "it said nothing"),
    ],
)
def test_last_error(tmp_path, lines, said):
    log = tmp_path / "vllm.log"
    log.write_text("\n".join(lines))
    assert last_error(log) == said


def crash(*frames: tuple[str, int, str]) -> list[str]:
    """What faulthandler writes: the stack of the thread that crashed stands among others."""
    stack = [f'  File "{file}", line {line} in {function}' for file, line, function in frames]
    other = ["Thread 0x1 (most recent call first):", '  File "/x/mllm/answerer.py", line 1 in wait', ""]
    current = ["Current thread 0x2 (most recent call first):", *stack, ""]
    return ["Fatal Python error: Segmentation fault", "", *other, *current, *other]


FRAME, SOUND = ("/x/av/frame.py", 5, "to_ndarray"), ("/x/mllm/media/decode.py", 210, "sound")
GONE = "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue."
TORCHS = [
    "!!!!!!! Segfault encountered !!!!!!!",
    '  File "./sysdeps/x86_64/libc_sigaction.c", line 0, in 0x7f67',
    '  File "./cpu/attention.cpp", line 57, in attend',
]
NATIVE = "signal 11 (SIGSEGV, a crash in native code)"


@pytest.mark.parametrize(
    ("status", "lines", "said"),
    [
        (-11, [], NATIVE),
        (-11, crash(FRAME, SOUND), f"{NATIVE}: Segmentation fault in mllm/media/decode.py, line 210 (sound)"),
        (-9, [], "signal 9 (SIGKILL, killed from outside, as the system does when memory runs out)"),
        (-15, [], "signal 15 (SIGTERM, asked to stop from outside)"),
        (
            0,
            [*crash(FRAME), GONE],
            "its engine crashed: Segmentation fault in av/frame.py, line 5 (to_ndarray)",
        ),
        (0, [*TORCHS, GONE], "its engine crashed: Segfault in cpu/attention.cpp, line 57 (attend)"),
        (0, [GONE], "its engine's process is gone without a word: killed from outside, or out of memory"),
        (2, ["OSError: disk full"], "exit status 2: OSError: disk full"),
    ],
)
def test_how_it_ended(tmp_path, status, lines, said):
    log = tmp_path / "vllm.log"
    before = "ValueError: of an earlier run\n"
    log.write_text(before + "\n".join(lines))
    assert how_it_ended(status, log, len(before)) == said


def test_what_is_not_said_comes_from_the_checkpoints_experiment(folder, monkeypatch):
    (folder / "experiment.yaml").write_text("serve: {port: 8123, dtype: float32, max_bytes: 5000000}\n")
    served = []
    monkeypatch.setattr("serve.supervise.serve_forever", lambda server, restarts: served.append(server) or 0)
    for words in ([str(folder)], [str(folder), "--dtype", "bfloat16", "--port", "0"]):
        with pytest.raises(SystemExit):
            cli.main(["serve", *words])
    read, said = served
    assert (read.port, read.max_media_mb, list(read.flags)) == (8123, 5.0, ["--dtype", "float32"])
    assert (said.port, list(said.flags)) == (0, ["--dtype", "bfloat16"])
