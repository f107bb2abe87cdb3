"""`POST /abort_request`: ends somebody's request from outside."""

from fastapi import APIRouter

from ...generation.service import AnyService
from ..common.json_route import JsonRoute
from ..openai.schemas import AbortBody

router = APIRouter(route_class=JsonRoute)


@router.post("/abort_request")
async def abort_request(body: AbortBody, service: AnyService) -> dict[str, int]:
    """Ends all choices of a request, known by its answer's id or its `x-request-id`; says how many were alive.

    An id that is unknown, or whose request has ended, is no error: there is nothing left to do.
    """
    service.check_fields(body)
    return {"aborted": service.running.abort(body.request_id)}
