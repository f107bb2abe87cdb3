"""Checks of a body: its model, and by the tables in `field_rules.py` the fields that its schema does not name."""

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
from .schema_base import Body, Fields

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

    def __call__(self, body: Fields) -> None:
        """Checks a body.

        Raises:
          ApiError: A field would change the response and has no effect here, or it is unknown and the check is strict.
        """
        rules, unknown = body.field_rules, []
        for name, value in (body.model_extra or {}).items():
            refusal = rules.refused.get(name)
            if refusal is None and name not in rules.ignored:
                unknown.append(name)
            elif refusal is not None and value not in refusal.neutral:
                raise _refused(name, refusal)
        for index, name in enumerate(unknown[:_MAX_NAMES]):
            self._report(name, closest_field(type(body), name) if index < _MAX_GUESSES else None)

    def _report(self, name: str, guess: str | None) -> None:
        hint = "" if guess is None else f"; did you mean {guess}?"
        if self._strict:
            raise bad_value(name, f"the field {name[:60]!r} is unknown{hint}")
        warn(name if guess is None else f"{name} ({guess}?)")
        if name not in self._logged and len(self._logged) < _MAX_NAMES:
            self._logged.add(name)
            _logger.warning("the unknown field %.60r was ignored%s; this is logged once", name, hint)


def check_body(body: Fields, request: Request) -> None:
    """Checks that a body names this model, and the fields that its schema does not name.

    Raises:
      ApiError: The model is another one, or a field is refused.
    """
    service: Service = request.app.state.service
    if isinstance(body, Body) and body.model is not None and body.model != service.model.id:
        raise unknown_model(body.model)
    check_fields: FieldCheck = request.app.state.check_fields
    check_fields(body)


@lru_cache(maxsize=1024)
def closest_field(kind: type[Fields], name: str) -> str | None:
    """Returns the known field that a misspelt name is closest to, if any is close."""
    rules = kind.field_rules
    known: Iterable[str] = {*kind.model_fields, *rules.refused, *rules.ignored}
    return next(iter(difflib.get_close_matches(name[:60], sorted(known), n=1, cutoff=0.8)), None)


def _refused(name: str, refusal: Refusal) -> ApiError:
    values = " or ".join(orjson.dumps(value).decode() for value in refusal.neutral)
    leave_out = f"leave it out, or send {values}" if values else "leave it out"
    return bad_value(name, f"{name} is not supported: {refusal.instead or leave_out}")
