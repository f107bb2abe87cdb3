"""The check of the fields that no schema names, in a body and in the objects within it."""

import difflib
import logging
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import orjson
from fastapi import Request

from ...errors import ApiError, bad_value, unknown_model
from ...generation.service import Service
from ...request_warnings import warn
from .field_rules import Refusal
from .schema_base import Body, JsonObject, RequestBody, UnnamedField

_MAX_NAMES: Final = 100
"""Maximum number of unknown names that are logged, so that made-up names fill neither the log nor the memory."""

_MAX_GUESSES: Final = 4
"""Maximum number of unknown names of a request that are compared with the known ones; each takes a millisecond."""

_logger = logging.getLogger(__name__)


class FieldCheck:
    """Refuses fields without effect here, and reports unknown names: in a header, and each once in the log.

    Args:
      strict: Whether unknown names are refused as well.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self._strict = strict
        self._logged: set[str] = set()

    def __call__(self, body: RequestBody) -> None:
        """Checks a body and the objects within it.

        Raises:
          ApiError: A field would change the response and has no effect here, or it is unknown and the check is strict.
        """
        for field in body.unnamed:
            if (refusal := field.kind.field_rules.refused.get(field.name)) is not None:
                raise _refused(field, refusal)
        for index, field in enumerate(body.unnamed):
            self._report(field, closest_field(field.kind, field.name) if index < _MAX_GUESSES else None)

    def _report(self, field: UnnamedField, guess: str | None) -> None:
        hint = "" if guess is None else f"; did you mean {guess}?"
        if self._strict:
            raise bad_value(field.param, f"the field {field.path[:120]!r} is unknown{hint}")
        warn(field.path if guess is None else f"{field.path} ({guess}?)")
        if field.pattern not in self._logged and len(self._logged) < _MAX_NAMES:
            self._logged.add(field.pattern)
            _logger.warning("the unknown field %.60r was ignored%s; this is logged once", field.path, hint)


def check_body(body: RequestBody, request: Request) -> None:
    """Checks that a body names this model, and the fields that its schema does not name.

    Raises:
      ApiError: The model is another one, or a field is refused.
    """
    service: Service = request.app.state.service
    if isinstance(body, Body) and body.model is not None and body.model != service.model.id:
        raise unknown_model(body.model, service.model.id)
    check_fields: FieldCheck = request.app.state.check_fields
    check_fields(body)


@lru_cache(maxsize=1024)
def closest_field(kind: type[JsonObject], name: str) -> str | None:
    """Returns the known field that a misspelt name is closest to, if any is close."""
    rules = kind.field_rules
    named = (field.alias or name for name, field in kind.model_fields.items())
    known: Iterable[str] = {*named, *rules.refused, *rules.ignored}
    return next(iter(difflib.get_close_matches(name[:60], sorted(known), n=1, cutoff=0.8)), None)


def _refused(field: UnnamedField, refusal: Refusal) -> ApiError:
    values = " or ".join(orjson.dumps(value).decode() for value in refusal.neutral)
    leave_out = f"leave it out, or send {values}" if values else "leave it out"
    return bad_value(field.param, f"{field.path} is not supported: {refusal.instead or leave_out}")
