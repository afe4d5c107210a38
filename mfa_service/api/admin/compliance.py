"""The report: who has which factor, and who is late."""

from datetime import datetime
from typing import Annotated, Literal

from flask import Response
from pydantic import Field

from mfa_service.api.admin.blueprint import ADMIN_REFUSALS, acting, blueprint
from mfa_service.services.audit import Event
from mfa_service.services.directory import FactorState, Row, Standing
from mfa_service.services.reports import as_csv
from mfa_service.web import services
from mfa_service.web.contract import Paged, View, asks, gives, refuses


class ComplianceQuery(Paged):
    """Which accounts. JSON comes a page at a time, CSV is the whole."""

    standing: Annotated[
        Standing | None, Field(description="`late`: must enrol now; `due`: by the deadline; `free`: need not.")
    ] = None
    format: Literal["json", "csv"] = "json"


class RowView(View):
    """One account in the report."""

    id: str
    username: str
    email: str
    roles: list[str]
    mfa: FactorState
    standing: Standing
    deadline: datetime | None = None
    last_seen_at: datetime


class ComplianceView(View):
    """How many there are of each standing, disabled accounts left out, and a page of them."""

    users: int
    enrolled: int
    late: int
    due: int
    free: int
    items: list[RowView]
    next: str | None = None


@blueprint.get("/compliance")
@asks(ComplianceQuery)
@gives(200, ComplianceView, media="text/csv")
@refuses(*ADMIN_REFUSALS)
def show_compliance(query: ComplianceQuery) -> ComplianceView | Response:
    """Who has which factor, and who is late."""
    if query.format == "csv":
        services().administration.record_export(acting(), Event.REPORT_EXPORTED, {"standing": query.standing})
        return Response(as_csv(services().directory.whole_report(query.standing)), mimetype="text/csv")
    numbers, rows, following = services().directory.report_with_numbers(query.standing, query.cursor)
    return ComplianceView(**vars(numbers), items=[_view(row) for row in rows], next=following)


def _view(row: Row) -> RowView:
    return RowView(
        id=row.user_id,
        username=row.username,
        email=row.email,
        roles=list(row.roles),
        mfa=row.factor,
        standing=row.standing,
        deadline=row.deadline,
        last_seen_at=row.seen_at,
    )
