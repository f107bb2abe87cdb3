"""Checks the fields of a request that its schema does not name, by the tables in `field_rules.py`."""

import difflib
import logging
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import orjson

from ... import request_warnings
from ...errors import ApiError, bad_value
from ..field_rules import Refusal, rules_for
from .schema_base import Fields

_MAX_NAMES: Final = 100
"""Number of unknown names that are logged; a client that makes up names fills neither the log nor the memory."""

_MAX_GUESSES: Final = 4
"""Number of unknown names of a request that are compared with the known ones; each takes about a millisecond."""

_logger = logging.getLogger(__name__)


class FieldCheck:
    """Refuses what cannot be done, and reports unknown names: in a header, and each once in the log.

    Args:
      strict: whether unknown names are refused as well.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self._strict = strict
        self._logged: set[str] = set()

    def __call__(self, body: Fields) -> None:
        """
        Raises:
          ApiError: a field asks for something that would change the answer and does not exist here, or is unknown and
            the check is strict.
        """
        rules, unknown = rules_for(type(body)), []
        for name, value in (body.model_extra or {}).items():
            refusal = rules.refused.get(name)
            if refusal is None and name not in rules.ignored:
                unknown.append(name)
            elif refusal is not None and value not in refusal.neutral:
                raise _refused(name, refusal)
        for index, name in enumerate(unknown[:_MAX_NAMES]):
            self._report(name, meant(type(body), name) if index < _MAX_GUESSES else None)

    def _report(self, name: str, guess: str | None) -> None:
        hint = "" if guess is None else f"; did you mean {guess}?"
        if self._strict:
            raise bad_value(name, f"the field {name[:60]!r} is unknown{hint}")
        request_warnings.warn(name if guess is None else f"{name} ({guess}?)")
        if name not in self._logged and len(self._logged) < _MAX_NAMES:
            self._logged.add(name)
            _logger.warning("the unknown field %.60r was ignored%s; this is logged once", name, hint)


@lru_cache(maxsize=1024)
def meant(kind: type[Fields], name: str) -> str | None:
    """Returns the known field that a misspelt name is closest to, if any is close."""
    rules = rules_for(kind)
    known: Iterable[str] = {*kind.model_fields, *rules.refused, *rules.ignored}
    return next(iter(difflib.get_close_matches(name[:60], sorted(known), n=1, cutoff=0.8)), None)


def _refused(name: str, refusal: Refusal) -> ApiError:
    values = " or ".join(orjson.dumps(value).decode() for value in refusal.neutral)
    leave_out = f"leave it out, or send {values}" if values else "leave it out"
    return bad_value(name, f"{name} is not supported: {refusal.instead or leave_out}")
