"""A stage process's hold on its shards: claim, heartbeat, give back."""

import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from shared import log as logs
from shared.db.engine import retry_while_db_down, transaction
from shared.db.tables import Json
from shared.jobs.shards import (
    Claim,
    LeaseLost,
    claim_shard,
    fail_shard,
    finish_shard,
    hand_back_shard,
    renew_lease,
    reset_attempts,
)
from shared.settings import get_settings

log = logging.getLogger(__name__)


class StageError(Exception):
    """A stage's failure as the job will show it. `retry` tells whether another attempt can help."""

    def __init__(
        self, message: str, *, code: str, param: str | None = None, retry: bool = False
    ) -> None:
        super().__init__(message)
        self.retry = retry
        self.error: Json = {"code": code, "message": message, "param": param}


def new_worker_name() -> str:
    """Unique for each process that claims, so that what it held can be told from others'."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def bound(claim: Claim) -> AbstractContextManager[None]:
    """Log lines inside say for which shard and attempt they are."""
    return logs.bind(shard=claim.index, attempt=claim.attempt)


class Leases:
    """Claims shards of one job under one name and keeps them leased from a thread."""

    def __init__(self, job_id: uuid.UUID, worker: str) -> None:
        self.job_id = job_id
        self.worker = worker
        self._settings = get_settings()
        # By token: a shard may be lost, and claimed again before the lost work ends.
        self._held: dict[uuid.UUID, tuple[Claim, Callable[[], None]]] = {}
        self._progress: dict[uuid.UUID, Json] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def claim(self, on_lost: Callable[[], None]) -> Claim | None:
        """Take a shard; `on_lost` is called from the heartbeat's thread if it is taken away."""
        claim = self._claim()
        if claim is not None:
            with self._lock:
                self._held[claim.token] = (claim, on_lost)
        return claim

    @retry_while_db_down
    def _claim(self) -> Claim | None:
        with self._lock:
            held = [claim.shard_id for claim, _ in self._held.values()]
        with transaction() as session:
            return claim_shard(
                session,
                self.job_id,
                worker=self.worker,
                lease_seconds=self._settings.lease_seconds,
                max_attempts=self._settings.max_attempts,
                held=held,
            )

    def report(self, claim: Claim, progress: Json) -> None:
        """Progress to be written with the next heartbeat."""
        with self._lock:
            self._progress[claim.token] = progress

    @retry_while_db_down
    def count_anew(self, claim: Claim) -> None:
        """The work is saved up to here: only attempts that get no further count from now on."""
        with suppress(LeaseLost), transaction() as session:
            reset_attempts(session, claim)

    def finish(self, claim: Claim, result: Json, write: Callable[[Session], None]) -> None:
        """Commit the rows and the shard in one transaction; `LeaseLost` writes neither."""
        try:
            self._finish(claim, result, write)
        finally:
            self._forget(claim)

    @retry_while_db_down
    def _finish(self, claim: Claim, result: Json, write: Callable[[Session], None]) -> None:
        with transaction() as session:
            # The token first: rows of a shard that another has finished would clash with its.
            finish_shard(session, claim, result)
            write(session)

    @contextmanager
    def ours(self, claim: Claim) -> Iterator[None]:
        """Nobody else can take the shard inside; raises `LeaseLost` where somebody has."""
        with transaction() as session:
            renew_lease(session, claim, lease_seconds=self._settings.lease_seconds)
            yield

    @retry_while_db_down
    def fail(self, claim: Claim, error: StageError) -> None:
        """Record a failure; a shard that is no longer ours is another's to judge."""
        self._forget(claim)
        # Its code alone: a message may quote a prompt.
        log.warning("shard failed", extra={"code": error.error["code"], "retry": error.retry})
        with suppress(LeaseLost), transaction() as session:
            fail_shard(
                session,
                claim,
                error.error,
                max_attempts=self._settings.max_attempts,
                retry=error.retry,
            )

    @retry_while_db_down
    def hand_back(self, claim: Claim, payload: Json) -> None:
        """Queue a shard again with another payload, at the cost of no attempt."""
        self._forget(claim)
        with suppress(LeaseLost), transaction() as session:
            hand_back_shard(session, claim, payload)

    def _forget(self, claim: Claim) -> None:
        with self._lock:
            self._held.pop(claim.token, None)
            self._progress.pop(claim.token, None)

    def _beat(self) -> None:
        while not self._stop.wait(self._settings.heartbeat_seconds):
            with self._lock:
                held = list(self._held.values())
                progress = dict(self._progress)
            for claim, on_lost in held:
                self._renew(claim, progress.get(claim.token), on_lost)

    def _renew(self, claim: Claim, progress: Json | None, on_lost: Callable[[], None]) -> None:
        try:
            with transaction() as session:
                renew_lease(
                    session, claim, lease_seconds=self._settings.lease_seconds, progress=progress
                )
        except LeaseLost:
            with bound(claim):
                log.warning("lease lost")
            self._forget(claim)
            on_lost()
        except SQLAlchemyError as error:
            # The lease may still hold when the database is back; the token decides at commit.
            log.warning("heartbeat failed: %s", type(error).__name__)


@contextmanager
def leases(job_id: uuid.UUID, worker: str) -> Iterator[Leases]:
    held = Leases(job_id, worker)
    thread = threading.Thread(target=held._beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield held
    finally:
        held._stop.set()
        thread.join()
