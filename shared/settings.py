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
    """Commands alone ask it, and look at the variable itself (`services/cli/api/connect.py`)."""

    model_store: Path = Path("models")
    """Folder with every model and checkpoint; shared by all workers and inference."""
    data_root: Path | None = None
    """Datasets named by a server-side path must lie under this folder; unset refuses paths."""
    log_dir: Path | None = None
    """Where engines write their raw logs; a temporary folder when unset. A training's is beside its
    checkpoints."""
    log_level: str = "INFO"
    metrics_port: int = 0
    """Where a worker and inference show figures to Prometheus, on every interface; 0: nowhere.
    Services show theirs at `/metrics`."""

    service_key: SecretStr | None = Field(default=None, min_length=32)
    """What services show each other, and who makes the first API key (`docs/keys.md`). The same for
    all four services and the loop; without it they refuse each other."""

    worker_engine_url: str = ""
    """Address of a running engine for bulk generation; empty: the worker starts its own vLLM. It is
    a vLLM with VLLM_SERVER_DEV_MODE=1 and `--served-model-name forethought` that sees the model
    store at the same path; it is neither started anew nor put to sleep."""
    worker_engine_port: int = 8011
    inference_engine_url: str = ""
    """The same for chat; empty: inference starts its own vLLM."""
    inference_engine_port: int = 8012
    inference_engine_host: str = "127.0.0.1"
    """Where inference's engine listens. Whoever reaches it may swap its weights: beyond loopback,
    let the network admit the coordinator only."""
    inference_advertised_url: str = ""
    """How the coordinator reaches that engine; empty: as inference itself does."""
    engine_args: str = ""
    """Extra arguments for every vLLM server, as on a command line."""
    engine_start_timeout_s: float = 900.0
    max_model_len: int = 4096
    """Longest sequence an engine takes, in tokens."""
    max_num_seqs: int = 256
    """Sequences an engine decodes at once; generate keeps about twice as many requested."""
    accelerate_config: Path | None = None
    """Of trainings over several machines: a configuration of `accelerate` (`docs/operate.md`).
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
    """A worker that has not been heard of for so long has died; another takes its shards."""
    heartbeat_seconds: float = 5.0
    """How often a worker renews its leases."""
    max_attempts: int = 3
    """Of a shard, before its job fails."""
    loop_poll_seconds: float = 1.0
    """How often the loop looks without having been told."""
    resend_after_seconds: float = 15.0
    """After which a job that has a shard to take is sent again."""
    worker_threads: int = 4
    """Of Celery under `forethought up`, which looks at the variable itself; in containers the
    worker's command says it."""
    checkpoint_seconds: float = 600.0
    """Of training that a kill may cost at most, beside the end of each epoch."""
    training_stall_seconds: float = 7200.0
    """A training of which no file has changed for so long hangs: it is ended, and tried again. As
    long as its ranks wait for one another; a pass over a micro-batch must take less."""
    retention_days: float | None = Field(default=None, ge=0, le=36_500)
    """Runs that ended longer ago are pruned (`docs/durability.md`); unset keeps everything."""

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
    """Of one process; more are answered 429."""

    @field_validator("judge_addresses")
    @classmethod
    def _are_urls(cls, value: str) -> str:
        for entry in value.split():
            normalized_url(entry.partition("=")[0])
        return value


@cache
def get_settings() -> Settings:
    return Settings()
