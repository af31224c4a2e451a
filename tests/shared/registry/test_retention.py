"""Which checkpoints may go, over random families of models."""

import uuid
from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from shared.db.tables import Iteration, Job, JobKind, Model, Status
from shared.registry.retention import unneeded
from tests.support import factories


@dataclass(frozen=True)
class Kin:
    """A model, begun with the one at `parent` of those before it."""

    parent: int
    named: bool
    promoted: bool
    trained: bool
    """By an iteration, which the next field is about."""
    iteration_pruned: bool
    begins_an_iteration: bool
    begins_a_job: bool


def kin(index: int) -> st.SearchStrategy[Kin]:
    seldom = st.sampled_from([False, False, False, True])
    often = st.sampled_from([True, True, True, False])
    return st.builds(Kin, st.integers(0, index), seldom, seldom, often, often, seldom, seldom)


families = st.integers(1, 7).flatmap(lambda n: st.tuples(*(kin(i) for i in range(n))))


def insert(session: Session, family: tuple[Kin, ...], seed: Model) -> list[Model]:
    dataset = factories.dataset(session, name=f"d-{uuid.uuid4()}")
    models = [seed]

    def iteration(begins_with: Model, pruned: bool) -> Iteration:
        row = Iteration(
            id=uuid.uuid4(),
            run_id=uuid.uuid4(),
            number=1,
            status=Status.failed,
            config={},
            dataset_id=dataset.id,
            seed_model_id=begins_with.id,
            pruned_at=func.now() if pruned else None,
        )
        session.add(row)
        session.flush()
        return row

    def job(iteration_id: uuid.UUID | None, status: Status, begins_with: Model) -> Job:
        params = {"model": str(begins_with.id)}
        row = Job(
            id=uuid.uuid4(),
            kind=JobKind.train,
            status=status,
            params=params,
            iteration_id=iteration_id,
        )
        session.add(row)
        session.flush()
        return row

    for n, one in enumerate(family):
        parent = models[one.parent]
        by = iteration(parent, one.iteration_pruned).id if one.trained else None
        model = factories.model(
            session,
            name=f"m{n}" if one.named else None,
            version=1 if one.named else None,
            parent_id=parent.id,
            job_id=job(by, Status.succeeded, parent).id,
            epoch=1,
            promoted_at=func.now() if one.promoted else None,
        )
        models.append(model)
        if one.begins_an_iteration:
            iteration(model, pruned=False)
        if one.begins_a_job:
            job(None, Status.running, model)
    return models[1:]


def expected(family: tuple[Kin, ...]) -> set[int]:
    """Those that go, by hand: from each that stays, and each that an iteration not pruned began
    with, up through its ancestors."""
    may_go = {
        n
        for n, one in enumerate(family)
        if not (one.named or one.promoted) and one.trained and one.iteration_pruned
    }
    needed: set[int] = set()
    for n, one in enumerate(family):
        stays = n not in may_go or one.begins_an_iteration or one.begins_a_job
        at = n if stays else one.parent - 1
        open_ = one.trained and not one.iteration_pruned
        while (stays or open_) and at >= 0 and at not in needed:
            needed.add(at)
            at = family[at].parent - 1
    return may_go - needed


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(families)
def test_what_a_model_that_stays_needs_never_goes(
    session: Session, family: tuple[Kin, ...]
) -> None:
    with session.begin_nested() as example:
        seed = factories.model(session, name=f"s-{uuid.uuid4()}")
        models = insert(session, family, seed)
        gone = set(session.scalars(select(Model.id).where(unneeded())))
        assert {n for n, model in enumerate(models) if model.id in gone} == expected(family)
        assert seed.id not in gone
        example.rollback()
