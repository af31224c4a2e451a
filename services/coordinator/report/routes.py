"""The routes of reports, as JSON and as pages."""

import uuid
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from sqlalchemy.orm import Session

from services.coordinator.iterations.state import find
from services.coordinator.report.pages import iteration_page, run_page
from services.coordinator.report.run import run_report
from shared.db.tables import Iteration
from shared.errors import Conflict
from shared.web.session import SessionDep

router = APIRouter(tags=["reports"])
HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
"""Names and categories are others' text: should one get past the escaping, it runs nothing."""


@router.get("/iterations/{iteration_id}/report")
def get_report(iteration_id: uuid.UUID, session: SessionDep) -> dict[str, Any]:
    """Read the report: sampling, pairs, training and validation. It holds no text of an output."""
    return _report(session, iteration_id)[1]


@router.get("/iterations/{iteration_id}/report.html", response_class=HTMLResponse)
def get_report_page(iteration_id: uuid.UUID, session: SessionDep) -> HTMLResponse:
    """The same as one self-contained page."""
    return HTMLResponse(iteration_page(*_report(session, iteration_id)), headers=HEADERS)


@router.get("/runs/{run_id}/report")
def get_run_report(run_id: uuid.UUID, session: SessionDep) -> dict[str, Any]:
    """A run's iterations side by side, and beside its direct baseline; also while it runs."""
    return run_report(session, run_id)


@router.get("/runs/{run_id}/report.html", response_class=HTMLResponse)
def get_run_report_page(run_id: uuid.UUID, session: SessionDep) -> HTMLResponse:
    """The same as one self-contained page with plots."""
    return HTMLResponse(run_page(run_report(session, run_id)), headers=HEADERS)


def _report(session: Session, iteration_id: uuid.UUID) -> tuple[Iteration, dict[str, Any]]:
    row = find(session, iteration_id)
    if row.report is None:
        raise Conflict(f"iteration {iteration_id} is {row.status}: its report is not there yet")
    return row, row.report
