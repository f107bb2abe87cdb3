"""`POST /abort_request`: aborts a running request."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field

from ...http.routes import AnyService, JsonRoute
from ...schemas.body import Fields
from .response_schemas import AbortedRequests

router = APIRouter(route_class=JsonRoute)


class AbortBody(Fields):
    """`POST /abort_request`."""

    request_id: Annotated[str, Field(min_length=1)]
    """Id of the response to end, or the request's `x-request-id`."""


@router.post("/abort_request")
async def abort_request(body: AbortBody, service: AnyService) -> AbortedRequests:
    """Aborts all choices of a request, by the response's id or its `x-request-id`, and returns how many were running.

    An unknown id, or the id of a request that has ended, is not an error.
    """
    return AbortedRequests(aborted=service.tracked.abort(body.request_id))
