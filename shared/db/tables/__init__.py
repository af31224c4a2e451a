"""The tables, with their enums beside them. `docs/architecture.md` says who writes which."""

from shared.db.tables.base import UNFINISHED, Base, Json, Split, Status
from shared.db.tables.datasets import Dataset, Prompt
from shared.db.tables.iterations import Evaluation, Event, Iteration, IterationPrompt, Pair
from shared.db.tables.jobs import Job, JobKind, Shard
from shared.db.tables.keys import ApiKey, AuditEvent, IdempotencyKey, Scope
from shared.db.tables.models import Model
from shared.db.tables.outputs import Completion, JudgeAnswer, Judgment, SampledPrompt
from shared.db.tables.serving import Serving

__all__ = [
    "UNFINISHED",
    "ApiKey",
    "AuditEvent",
    "Base",
    "Completion",
    "Dataset",
    "Evaluation",
    "Event",
    "IdempotencyKey",
    "Iteration",
    "IterationPrompt",
    "Job",
    "JobKind",
    "Json",
    "JudgeAnswer",
    "Judgment",
    "Model",
    "Pair",
    "Prompt",
    "SampledPrompt",
    "Scope",
    "Serving",
    "Shard",
    "Split",
    "Status",
]
