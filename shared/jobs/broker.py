"""The Celery application, and sending of messages after commit.

A message says "there may be work in this job" and nothing else. It may be lost, doubled or late.
"""

import logging
import uuid
from collections.abc import Sequence

from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from shared.db.tables import JobKind
from shared.settings import get_settings

log = logging.getLogger(__name__)

QUEUE = {
    JobKind.generate: "generate",
    JobKind.judge: "judge",
    JobKind.train: "train",
    JobKind.register: "train",
    JobKind.prune: "train",
}

celery = Celery("forethought", broker=get_settings().redis_url)
celery.conf.update(
    task_ignore_result=True,
    task_serializer="json",
    accept_content=["json"],
    # Acknowledged on receipt: the row and the sweeper bring work back, not the broker.
    task_acks_late=False,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={
        "socket_connect_timeout": 2,
        "socket_timeout": 5,
        "max_retries": 1,
        "interval_start": 0,
        "interval_max": 0.1,
    },
    task_publish_retry=False,
    worker_hijack_root_logger=False,
)

_OUTBOX = "outbox"


def send(messages: Sequence[tuple[JobKind, uuid.UUID]]) -> None:
    """Send the messages now. A broker that is away costs time, not work: the sweeper sends again.

    The first failure ends the sending, so that many messages cost one time-out.
    """
    for number, (kind, job_id) in enumerate(messages):
        try:
            celery.send_task("forethought.run", args=[kind.value, str(job_id)], queue=QUEUE[kind])
        except (OperationalError, OSError) as error:
            waiting = len(messages) - number
            log.warning("broker unavailable, %d jobs wait for the sweeper: %s", waiting, error)
            return


def send_after_commit(session: Session, kind: JobKind, job_id: uuid.UUID) -> None:
    """Send when this session's transaction commits; a rolled-back transaction sends nothing."""
    session.info.setdefault(_OUTBOX, []).append((kind, job_id))


@event.listens_for(Session, "after_commit")
def _flush_outbox(session: Session) -> None:
    if session.in_nested_transaction():
        return
    send(session.info.pop(_OUTBOX, []))


@event.listens_for(Session, "after_soft_rollback")
def _drop_outbox(session: Session, previous: SessionTransaction) -> None:
    if not previous.nested:
        session.info.pop(_OUTBOX, None)


def ping() -> None:
    """Raise an error if the broker cannot be reached, or does not answer within two seconds."""
    options = celery.conf.broker_transport_options | {"socket_timeout": 2}
    with celery.connection_for_read(transport_options=options) as connection:
        connection.ensure_connection(max_retries=0, timeout=2)
