"""The rows that pruning deletes, as conditions of queries.

These are, from pruned iterations: checkpoints without a name that were never promoted, unless a
model that stays or unfinished work was made from them, over any number of generations; and
completions, unless they are in a pair that led to a model that stays.
"""

from typing import Any

from sqlalchemy import ColumnElement, CompoundSelect, Text, and_, cast, or_, select, union
from sqlalchemy.orm import aliased

from shared.db.tables import UNFINISHED, Completion, Iteration, Job, JobKind, Model, Pair


def in_use() -> CompoundSelect[Any]:
    """Ids of models that work begins with which is not over, or may be resumed: an iteration
    that failed can be until it is pruned."""
    model = aliased(Model)  # Not to be taken for the model of the query around it.
    open_ = Iteration.pruned_at.is_(None)
    return union(
        select(Iteration.seed_model_id).where(open_),
        select(Iteration.parent_model_id).where(open_, Iteration.parent_model_id.is_not(None)),
        select(model.id)
        .join(Job, Job.params["model"].as_string() == cast(model.id, Text))
        .where(Job.status.in_(UNFINISHED)),
        # Judges: wherever in the config, also in a mixture.
        select(model.id)
        .join(Iteration, cast(Iteration.config, Text).contains(cast(model.id, Text)))
        .where(open_, model.name.is_(None)),
    )


def unneeded() -> ColumnElement[bool]:
    """Models whose weights go."""
    stays = or_(and_(Model.path.is_not(None), ~_may_go()), Model.id.in_(in_use()))
    needed = select(Model.id, Model.parent_id).where(stays).cte("needed", recursive=True)
    parent = aliased(Model)
    needed = needed.union(
        select(parent.id, parent.parent_id).where(parent.id == needed.c.parent_id)
    )
    return and_(_may_go(), Model.id.not_in(select(needed.c.id)))


def _may_go() -> ColumnElement[bool]:
    job = aliased(Job)
    of_a_pruned_iteration = (
        select(job.id)
        .join(Iteration, Iteration.id == job.iteration_id)
        .where(
            job.id == Model.job_id,
            job.kind == JobKind.train,
            Iteration.pruned_at.is_not(None),
        )
        .exists()
    )
    return and_(
        Model.path.is_not(None),
        Model.name.is_(None),
        Model.promoted_at.is_(None),
        of_a_pruned_iteration,
    )


def of_lineage() -> ColumnElement[bool]:
    """Pairs of iterations that led to a model that stays."""
    led = (
        select(Job.iteration_id)
        .join(Model, Model.job_id == Job.id)
        .where(
            Job.kind == JobKind.train,
            Job.iteration_id.is_not(None),
            Model.path.is_not(None),
            ~unneeded(),
        )
    )
    return Pair.iteration_id.in_(led)


def unpaired(*of: ColumnElement[bool]) -> ColumnElement[bool]:
    """Completions that are in no pair, or in none of these."""
    # Two conditions: Postgres cannot hash a single one with an OR in it.
    sides = (Pair.chosen_id, Pair.rejected_id)
    return and_(*(~select(Pair.id).where(side == Completion.id, *of).exists() for side in sides))
