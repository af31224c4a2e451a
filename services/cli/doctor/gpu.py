"""Checks of the GPUs, their driver, torch and vLLM.

Each library is imported in a child process: an import takes seconds, and a broken library may crash
the process.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.cli.doctor.finding import Finding, problem
from services.cli.doctor.packages import version

PATIENCE_S = 180
DRIVER_PATIENCE_S = 60
DRIVER = Path("/proc/driver/nvidia/version")
FIELDS = "name,compute_cap,memory.total,memory.free,driver_version"
MIN_CAPABILITY = 7.5
"""Lowest compute capability that vLLM supports. GPUs below 8.0 have no bfloat16."""
BUSY = 0.8
"""Share of the memory that must be free; a GPU with less is in use by others."""
ASK_TORCH = """
import json, torch
print(json.dumps([torch.version.cuda, torch.cuda.is_available(), torch.cuda.device_count()]))
"""
ASK_VLLM = "import vllm.entrypoints.openai.api_server"


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: float
    total_mib: int | None
    free_mib: int | None
    """None when the driver does not report it, as for memory that GPU and CPU share."""
    driver: str


def examine() -> Iterator[Finding]:
    gpus, driver = _gpus()
    if driver is not None:
        yield driver
    for number, gpu in enumerate(gpus):
        yield _gpu(number, gpu)
    if version("torch") is not None:
        yield _torch(len(gpus))
    if version("vllm") is not None:
        yield _vllm()


def _gpus() -> tuple[list[Gpu], Finding | None]:
    if shutil.which("nvidia-smi") is None:
        if DRIVER.exists():
            fix = "install the NVIDIA container toolkit, or nvidia-utils of the driver's version"
            return [], problem("GPU", "the driver is installed, but nvidia-smi is missing", fix)
        return [], Finding("GPU", "none: the CPU is used (small models only)")
    query = [f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            ["nvidia-smi", *query], capture_output=True, text=True, timeout=DRIVER_PATIENCE_S
        )
    except subprocess.TimeoutExpired:
        fix = "the driver hangs: restart the machine (`dmesg` may say why)"
        return [], problem("GPU", f"nvidia-smi: no answer after {DRIVER_PATIENCE_S} s", fix)
    if done.returncode != 0:
        message = done.stdout.strip() or done.stderr.strip()
        fix = "reinstall the driver and restart the machine; nothing runs on the GPU until then"
        return [], problem("GPU", f"nvidia-smi fails: {message}", fix)
    return [_read(line) for line in done.stdout.strip().splitlines()], None


def _read(line: str) -> Gpu:
    name, capability, total, free, driver = (cell.strip() for cell in line.split(","))
    return Gpu(name, float(capability), _mib(total), _mib(free), driver)


def _mib(cell: str) -> int | None:
    return int(cell) if cell.isdigit() else None  # `[N/A]`


def _gpu(number: int, gpu: Gpu) -> Finding:
    subject = f"GPU {number}"
    memory = "memory unknown"
    if gpu.total_mib is not None and gpu.free_mib is not None:
        memory = f"{gpu.free_mib / 1024:.0f} of {gpu.total_mib / 1024:.0f} GiB free"
    detail = f"{gpu.name}, {memory}, driver {gpu.driver}"
    if gpu.capability < MIN_CAPABILITY:
        return problem(subject, detail, f"vLLM needs compute capability {MIN_CAPABILITY} or more")
    if gpu.capability < 8:
        return Finding(
            subject, detail, "no bfloat16: set FORETHOUGHT_ENGINE_ARGS='--dtype float16'"
        )
    if gpu.free_mib is not None and gpu.total_mib and gpu.free_mib < BUSY * gpu.total_mib:
        share = int(10 * gpu.free_mib / gpu.total_mib) / 10
        fix = (
            "other processes use the rest (see `nvidia-smi`): end them, or set "
            f"FORETHOUGHT_ENGINE_ARGS='--gpu-memory-utilization {share}'"
        )
        return Finding(subject, detail, fix)
    return Finding(subject, detail)


def _torch(gpus: int) -> Finding:
    done = _python(ASK_TORCH)
    if done.returncode != 0:
        return problem("torch", f"cannot be imported: {_last(done.stderr)}", "run `make setup`")
    cuda, usable, seen = json.loads(done.stdout.splitlines()[-1])
    detail = f"{version('torch')}, " + (f"for CUDA {cuda}" if cuda else "for the CPU")
    if gpus and not cuda:
        fix = "it cannot use the GPU: use the images vllm and trl, or a CUDA build of torch"
        return problem("torch", detail, fix)
    if gpus and not usable:
        fix = f"update the driver to one for CUDA {cuda}; torch says: {_last(done.stderr)}"
        return problem("torch", f"{detail}, sees no GPU", fix)
    if cuda and seen < gpus:
        return Finding(
            "torch", f"{detail}, sees {seen} of {gpus} GPUs", "check CUDA_VISIBLE_DEVICES"
        )
    return Finding("torch", detail)


def _vllm() -> Finding:
    found = str(version("vllm"))
    done = _python(ASK_VLLM)
    if done.returncode != 0:
        fix = "vLLM, torch and the driver must fit each other: use the image vllm or `make setup`"
        return problem("vLLM", f"{found} cannot be imported: {_last(done.stderr)}", fix)
    return Finding("vLLM", f"{found}, its server can be started")


def _python(code: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", code]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer after {PATIENCE_S} s")


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "nothing"
