"""A vLLM server as a child process: its command line, its log, its end."""

import importlib.metadata
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from shared.process import ending_with_us
from shared.settings import Settings
from workers.resource_errors import oom_kills, tells_of_no_memory

MODEL_NAME = "forethought"
"""Name by which requests address the model, whichever it is."""
STOP_SECONDS = 10.0
TAIL_LINES = 20
MIN_BATCHED_TOKENS = 4096
MAX_SMALL_CORES = 4
BFLOAT16_FLAGS = {"amx_bf16", "bf16"}
"""Flags of CPUs that multiply matrices in bfloat16: AMX, Arm."""


class ServerProcess:
    """A server in a process group of its own, which ends when we do, however we end."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log_file: Path) -> None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        if log_file.exists():
            log_file.replace(log_file.with_suffix(".log.old"))
        self._command = ending_with_us(command)
        self._env = env
        self._log_file = log_file
        self._process: subprocess.Popen[bytes] | None = None
        self._spawned = threading.Event()
        self._kills_before = oom_kills()
        # The death signal belongs to the thread that starts the child, so one waits with it.
        threading.Thread(target=self._run, name="engine-process", daemon=True).start()
        self._spawned.wait()

    def _run(self) -> None:
        try:
            with self._log_file.open("wb") as output:
                self._process = subprocess.Popen(
                    self._command,
                    env=self._env,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        finally:
            self._spawned.set()
        self._process.wait()

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return -1 if self._process is None else self._process.poll()

    def stop(self, patience: float = STOP_SECONDS) -> None:
        """End the whole group: a request to leave, and force after `patience` seconds."""
        if self._process is None:
            return
        for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, STOP_SECONDS)):
            self._signal(number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
                break
        self._signal(signal.SIGKILL)  # what its leader may have left behind

    def _signal(self, number: int) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def last_lines(self) -> str:
        return "\n".join(self._log().splitlines()[-TAIL_LINES:])

    def ran_out_of_memory(self) -> bool:
        """Tell whether the server, or a process that it started, ran out of memory."""
        if tells_of_no_memory(self._log()):
            return True
        # The kernel counts for the whole machine: a server that runs was not meant.
        return self.exit_code is not None and oom_kills() > self._kills_before

    def _log(self) -> str:
        return self._log_file.read_text(errors="replace")


def command(settings: Settings, model: Path, host: str, port: int) -> list[str]:
    return [
        sys.executable, "-W", "ignore::DeprecationWarning",
        *("-m", "vllm.entrypoints.openai.api_server"),
        *("--served-model-name", MODEL_NAME),
        *("--host", host, "--port", str(port)),
        "--no-enable-log-requests", "--disable-uvicorn-access-log",
        *("--uvicorn-log-level", "warning"),
        *engine_flags(settings, model),
    ]  # fmt: skip


def engine_flags(settings: Settings, model: Path) -> list[str]:
    """Arguments for vLLM's engine, whichever program serves it."""
    longest = max_model_len(settings, model)
    return [
        *("--model", str(model)),
        *("--max-model-len", str(longest), "--max-num-seqs", str(settings.max_num_seqs)),
        # Sampling is what a request says, and nothing that a model's folder adds to it.
        *("--generation-config", "vllm"),
        "--enable-prefix-caching",
        *(["--enable-sleep-mode"] if has_gpu() else _on_cpu(longest)),
        *shlex.split(settings.engine_args),
    ]  # fmt: skip


def _on_cpu(longest: int) -> list[str]:
    return [
        "--enforce-eager",
        # A prompt prefilled in chunks with a seed ends vLLM 0.32 on a CPU ("CPU Generator does not
        # use offset"): it takes a sample back by an offset that only CUDA's generators have.
        "--no-enable-chunked-prefill",
        *("--max-num-batched-tokens", str(max(longest, MIN_BATCHED_TOKENS))),
        # Only whole blocks of a prefix are shared. With the default of 128 tokens each sample of a
        # prompt computed it anew, and each response its thought.
        *("--block-size", "32"),
        *([] if _multiplies_bfloat16() else ["--dtype", "float32"]),
    ]


def _multiplies_bfloat16() -> bool:
    """Elsewhere float32 decodes faster: 208 to 112 tokens/s on 2 cores without any bfloat16, 414 to
    334 with AVX-512's."""
    info = Path("/proc/cpuinfo")
    return not info.exists() or not BFLOAT16_FLAGS.isdisjoint(info.read_text().split())


def environment() -> dict[str, str]:
    """The caller's environment over our defaults; what swapping needs over both."""
    defaults = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if not has_gpu():
        # For prompt_logprobs it would call a C++ compiler, which may be missing, and fails in a
        # folder with a space.
        defaults["TORCHDYNAMO_DISABLE"] = "1"
        # Gibibytes; its own default is half of the machine's memory, and two engines may run.
        defaults["VLLM_CPU_KVCACHE_SPACE"] = "2"
        if (os.cpu_count() or 1) <= MAX_SMALL_CORES:
            # It would keep one for its scheduler, which is half of a machine with two.
            defaults["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
    # Dev mode opens the routes that swap and sleep; who may reach them is up to the address that
    # the server listens on, loopback by default.
    return {**defaults, **os.environ, "VLLM_SERVER_DEV_MODE": "1", "HF_HUB_OFFLINE": "1"}


def max_model_len(settings: Settings, model: Path) -> int:
    """The setting, but no longer than the model can take."""
    config = json.loads((model / "config.json").read_text())
    longest = config.get("max_position_embeddings") or settings.max_model_len
    return min(settings.max_model_len, int(longest))


def log_file(settings: Settings, name: str) -> Path:
    return (settings.log_dir or Path(tempfile.gettempdir())) / f"{name}.log"


@cache
def has_gpu() -> bool:
    """Tell whether engines run on a GPU: there is one, and vLLM is not the CPU package."""
    if not (Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()):
        return False
    with suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("vllm-cpu")
        return False
    return True
