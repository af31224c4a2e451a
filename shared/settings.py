"""Every setting of every process. Read from the environment with the prefix `FORETHOUGHT_`."""

from functools import cache
from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.base import normalized_url


class Settings(BaseSettings):
    """Defaults suit one machine; `forethought up` sets the addresses of what it starts."""

    model_config = SettingsConfigDict(
        env_prefix="FORETHOUGHT_",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,  # it may be a key
    )

    database_url: str = "postgresql+psycopg://forethought@localhost:5432/forethought"
    redis_url: str = "redis://localhost:6379/0"

    generate_url: str = "http://127.0.0.1:8001"
    judge_url: str = "http://127.0.0.1:8002"
    train_url: str = "http://127.0.0.1:8003"
    coordinator_url: str = "http://127.0.0.1:8000"
    """Address of the coordinator. Only the commands use it (`services/cli/api/connect.py`)."""

    model_store: Path = Path("models")
    """Folder with every model and checkpoint; shared by all workers and inference."""
    data_root: Path | None = None
    """Datasets named by a server-side path must lie under this folder; unset refuses paths."""
    log_dir: Path | None = None
    """Folder for the raw logs of engines; a temporary folder when unset. The log of a training lies
    beside its checkpoints."""
    log_level: str = "INFO"
    metrics_port: int = 0
    """Port at which a worker and inference show metrics to Prometheus, on every interface; 0 shows
    none. Services show theirs at `/metrics`."""

    service_key: SecretStr | None = Field(default=None, min_length=32)
    """Key by which services trust each other, and with which the first API key is made
    (`docs/keys.md`). It must be the same for all services and the loop."""

    worker_engine_url: str = ""
    """Address of a running engine for bulk generation; empty: the worker starts its own vLLM. It is
    a vLLM with VLLM_SERVER_DEV_MODE=1 and `--served-model-name forethought` that sees the model
    store at the same path; it is neither started anew nor put to sleep."""
    worker_engine_port: int = 8011
    inference_engine_url: str = ""
    """Address of a running engine for chat; empty: inference starts its own vLLM."""
    inference_engine_port: int = 8012
    inference_engine_host: str = "127.0.0.1"
    """Address at which inference's engine listens. Anyone who reaches it can swap its weights:
    beyond loopback, let the network admit the coordinator only."""
    inference_advertised_url: str = ""
    """Address by which the coordinator reaches that engine; empty: the one that inference uses."""
    engine_args: str = ""
    """Extra arguments for every vLLM server, as on a command line."""
    engine_start_timeout_s: float = 900.0
    max_model_len: int = 4096
    """Longest sequence an engine takes, in tokens."""
    max_num_seqs: int = 256
    """Sequences an engine decodes at once; generate keeps about twice as many requested."""
    accelerate_config: Path | None = None
    """Configuration file of `accelerate` for trainings over several machines (`docs/operate.md`).
    Unset, a training takes the GPUs that its worker sees."""
    sleep_engine_while_training: bool = True
    """On a GPU, the engine frees its memory while a training holds the device."""

    judge_addresses: str = "https://api.openai.com/v1=OPENAI_API_KEY"
    """OpenAI-compatible addresses that may judge, with spaces between them; `URL=VARIABLE` names
    the variable of a worker's environment that holds the address's key."""
    remote_code: str = ""
    """Reward models whose own Python code may run in a worker, with spaces between them: a model as
    a request names it, or `MODEL@REVISION` for that revision only."""

    lease_seconds: float = 25.0
    """Seconds without a sign of life after which a worker counts as dead, and another takes its
    shards."""
    heartbeat_seconds: float = 5.0
    """Seconds between two renewals of a worker's leases."""
    max_attempts: int = 3
    """Attempts at a shard before its job fails."""
    loop_poll_seconds: float = 1.0
    """Seconds after which the loop looks for work even if no notification came."""
    resend_after_seconds: float = 15.0
    """Seconds after which a job with a shard that nobody has taken is sent again."""
    worker_threads: int = 4
    """Threads of the Celery worker under `forethought up`. In containers the worker's command sets
    them."""
    checkpoint_seconds: float = 600.0
    """Seconds between two checkpoints of a training, the most that a kill can cost. The end of each
    epoch makes one too."""
    training_stall_seconds: float = 7200.0
    """Seconds without a change to any of its files after which a training counts as hung, is ended
    and tried again. Its ranks wait as long for one another, so a micro-batch must take less."""
    retention_days: float | None = Field(default=None, ge=0, le=36_500)
    """Days after its end when a run is pruned (`docs/durability.md`); unset keeps everything."""

    max_body_bytes: int = 32 * 1024 * 1024
    """Largest body of a request in bytes, except chat's and an upload's file. Parsed, its JSON may
    take 25 times that in memory."""
    max_chat_body_bytes: int = 4 * 1024 * 1024
    """Largest body of a request to `/v1`, in bytes."""
    max_body_bytes_in_flight: int = 64 * 1024 * 1024
    """Most bytes of bodies that a process holds at once, for chat and for all else separately.
    Requests beyond it are answered 503; uploads wait in files and do not count."""
    head_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds in which a request's address and headers must have arrived."""
    body_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds to wait for a body; each KiB that has arrived adds one."""
    max_upload_bytes: int = 256 * 1024 * 1024
    """Largest file of a dataset in bytes, and most bytes of lines taken from a Hub dataset."""
    max_chat_in_flight: int = 256
    """Chat requests that one process answers at once; more are answered 429."""

    @field_validator("judge_addresses")
    @classmethod
    def _are_urls(cls, value: str) -> str:
        for entry in value.split():
            normalized_url(entry.partition("=")[0])
        return value


@cache
def get_settings() -> Settings:
    return Settings()
