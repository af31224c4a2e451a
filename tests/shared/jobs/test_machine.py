"""Any interleaving of what workers, the sweeper and users do to a job keeps its promises.

A model beside the real tables says what each step must do: who owns a shard, and so whose commit
counts. Time is moved by hand: a lease or a retry's delay ends when the machine says so.
"""

import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, func, insert, select, update
from sqlalchemy.orm import Session

from shared.db.engine import transaction
from shared.db.tables import UNFINISHED, Completion, JobKind, Shard, Status
from shared.jobs import recovery
from shared.jobs.job import NewShard, cancel_job, get_job, resume_job, submit_job
from shared.jobs.recovery import release_shards
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

pytestmark = pytest.mark.usefixtures("long_up")
MAX_ATTEMPTS = 3
WORKERS = st.sampled_from(["a", "b", "c"])
ERROR = {"code": "broken", "message": "broken"}


@dataclass
class Piece:
    """What the model knows of a shard."""

    status: Status = Status.queued
    attempt: int = 0
    owner: Claim | None = None
    worker: str = ""
    due: bool = True
    expired: bool = False

    @property
    def claimable(self) -> bool:
        waiting = self.status is Status.queued and self.due
        abandoned = self.status is Status.running and self.expired
        return (waiting or abandoned) and self.attempt < MAX_ATTEMPTS

    def queue(self, *, attempt: int, due: bool) -> None:
        self.status, self.attempt, self.due, self.owner = Status.queued, attempt, due, None


@dataclass
class Model:
    status: Status = Status.queued
    pieces: list[Piece] = field(default_factory=list)

    def end(self, status: Status) -> None:
        self.status = status
        for piece in self.pieces:
            if piece.status in UNFINISHED:
                piece.status, piece.owner = Status.cancelled, None


class JobLife(RuleBasedStateMachine):
    @initialize(shards=st.integers(1, 3))
    def submit(self, shards: int) -> None:
        self.job_id = uuid.uuid4()
        self.claims: list[Claim] = []
        self.model = Model(pieces=[Piece() for _ in range(shards)])
        with transaction() as session:
            for is_new in (True, False):  # a repeat changes nothing
                new = [NewShard({"n": n}) for n in range(shards)]
                _, created = submit_job(session, JobKind.generate, {}, new, job_id=self.job_id)
                assert created is is_new

    def _piece(self, claim: Claim) -> Piece | None:
        """The shard that a claim still owns, or None where it has lost it."""
        piece = self.model.pieces[claim.index]
        return piece if piece.owner == claim else None

    def _write(self, claim: Claim, write: Any) -> Piece | None:
        """Let a claim's holder commit; its shard where the token was right."""
        piece = self._piece(claim)
        if piece is None:
            with pytest.raises(LeaseLost), transaction() as session:
                write(session)
        else:
            with transaction() as session:
                write(session)
        return piece

    @rule(worker=WORKERS)
    def claim(self, worker: str) -> None:
        with transaction() as session:
            claim = claim_shard(
                session, self.job_id, worker=worker, lease_seconds=60, max_attempts=MAX_ATTEMPTS
            )
        unfinished = self.model.status in UNFINISHED
        free = [i for i, p in enumerate(self.model.pieces) if p.claimable and unfinished]
        if claim is None:
            assert not free
            return
        assert claim.index == free[0]
        piece = self.model.pieces[claim.index]
        piece.status, piece.attempt, piece.owner = Status.running, piece.attempt + 1, claim
        piece.worker, piece.expired = worker, False
        assert claim.attempt == piece.attempt
        self.model.status = Status.running
        self.claims.append(claim)

    def _any_claim(self, data: st.DataObject) -> Claim:
        return data.draw(st.sampled_from(self.claims))

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        claim = self._any_claim(data)
        piece = self._write(claim, lambda s: renew_lease(s, claim, lease_seconds=60))
        if piece is not None:
            piece.expired = False

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        claim = self._any_claim(data)

        def write(session: Session) -> None:
            finish_shard(session, claim, {"tokens": 1})
            session.execute(insert(Completion).values(completion(claim)))

        piece = self._write(claim, write)
        if piece is not None:
            piece.status, piece.owner = Status.succeeded, None
            if all(p.status is Status.succeeded for p in self.model.pieces):
                self.model.end(Status.succeeded)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), retry=st.booleans())
    def fail(self, data: st.DataObject, retry: bool) -> None:
        claim = self._any_claim(data)
        piece = self._write(
            claim, lambda s: fail_shard(s, claim, ERROR, max_attempts=MAX_ATTEMPTS, retry=retry)
        )
        if piece is not None:
            self._failed(piece, retry)

    def _failed(self, piece: Piece, retry: bool = True) -> None:
        if retry and piece.attempt < MAX_ATTEMPTS:
            piece.queue(attempt=piece.attempt, due=False)
        else:
            piece.status, piece.owner = Status.failed, None
            self.model.end(Status.failed)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def hand_back(self, data: st.DataObject) -> None:
        claim = self._any_claim(data)
        piece = self._write(claim, lambda s: hand_back_shard(s, claim, {"smaller": True}))
        if piece is not None:
            piece.queue(attempt=piece.attempt - 1, due=True)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def count_anew(self, data: st.DataObject) -> None:
        claim = self._any_claim(data)
        piece = self._write(claim, lambda s: reset_attempts(s, claim))
        if piece is not None:
            piece.attempt = 1

    @rule(worker=WORKERS, counts=st.booleans())
    def release(self, worker: str, counts: bool) -> None:
        """The worker's process has exited."""
        held = [p for p in self.model.pieces if p.owner is not None and p.worker == worker]
        with transaction() as session:
            release_shards(
                session, self.job_id, worker, ERROR, max_attempts=MAX_ATTEMPTS, counts=counts
            )
        for piece in held:
            if not counts:
                piece.queue(attempt=piece.attempt - 1, due=True)
            elif piece.owner is not None:  # the job may have ended with the one before
                self._failed(piece)

    @rule()
    def time_passes(self) -> None:
        """Every lease runs out and every delay is over."""
        mine = Shard.job_id == self.job_id
        past = func.clock_timestamp() - timedelta(seconds=1)
        with transaction() as session:
            session.execute(update(Shard).where(mine).values(lease_until=past, not_before=past))
        for piece in self.model.pieces:
            piece.expired = piece.status is Status.running
            piece.due = True

    @rule()
    def sweep(self) -> None:
        with transaction() as session:
            due = recovery.sweep(
                session, resend_after_seconds=0, lease_seconds=0, max_attempts=MAX_ATTEMPTS
            )
            sent = self.job_id in {job.id for job in due}
        for piece in self.model.pieces:
            if piece.expired and piece.owner is not None and piece.attempt >= MAX_ATTEMPTS:
                piece.status, piece.owner = Status.failed, None
                self.model.end(Status.failed)
        unfinished = self.model.status in UNFINISHED
        assert sent == (unfinished and any(p.claimable for p in self.model.pieces))

    @rule()
    def cancel(self) -> None:
        with transaction() as session:
            cancel_job(session, self.job_id)
        if not self.model.status.terminal:
            self.model.end(Status.cancelled)

    @rule()
    def resume(self) -> None:
        with transaction() as session:
            resume_job(session, self.job_id)
        if self.model.status in (Status.failed, Status.cancelled):
            self.model.status = Status.queued
            for piece in self.model.pieces:
                if piece.status is not Status.succeeded:
                    piece.queue(attempt=0, due=True)

    @invariant()
    def the_tables_are_as_the_model_says(self) -> None:
        if not hasattr(self, "job_id"):
            return
        with transaction() as session:
            job = get_job(session, self.job_id)
            shards = session.scalars(
                select(Shard).where(Shard.job_id == self.job_id).order_by(Shard.index)
            ).all()
            rows = session.scalars(
                select(Completion.prompt_index)
                .where(Completion.job_id == self.job_id)
                .order_by(Completion.prompt_index)
            ).all()
        assert job.status is self.model.status
        for shard, piece in zip(shards, self.model.pieces, strict=True):
            assert (shard.status, shard.attempt) == (piece.status, piece.attempt)
            assert (piece.owner is None) or shard.token == piece.owner.token
        done = [i for i, p in enumerate(self.model.pieces) if p.status is Status.succeeded]
        assert rows == done, "rows exist exactly for the shards that have succeeded"
        if job.status is Status.succeeded:
            assert job.result == {"tokens": len(shards)}


def completion(claim: Claim) -> dict[str, Any]:
    return {
        "job_id": claim.job_id,
        "shard_id": claim.shard_id,
        "prompt_index": claim.index,
        "sample_index": 0,
        "output": "x",
        "prompt_tokens": 1,
        "thought_tokens": 0,
        "response_tokens": 1,
        "truncated": False,
        "forced": False,
        "seed": 0,
    }


def test_any_interleaving_keeps_the_promises(clean_database: Engine) -> None:
    run_state_machine_as_test(
        JobLife, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
    )
