"""Deletion times of files, from the `expires_after` that clients send."""

import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from ...errors.request_errors import bad_value
from ...errors.validation_errors import describe
from .schemas import ExpiresAfter

EXPIRY_FIELDS: Final = {f"expires_after[{name}]": name for name in ("anchor", "seconds")}
"""Fields of a form, and their names in `expires_after`."""

_DAY_S: Final = 86400.0


def form_expiry(fields: Mapping[str, str]) -> ExpiresAfter | None:
    """Returns the `expires_after` of a form, which has one field per value; None if the form has none.

    Raises:
      ApiError: A value is wrong or missing.
    """
    sent: dict[str, Any] = {EXPIRY_FIELDS[name]: value for name, value in fields.items() if name in EXPIRY_FIELDS}
    if not sent:
        return None
    if re.fullmatch("[0-9]{1,9}", sent.get("seconds", "")):
        sent["seconds"] = int(sent["seconds"])
    try:
        return ExpiresAfter.model_validate(sent)
    except ValidationError as error:
        detail = error.errors()[0]
        raise bad_value("expires_after", describe(detail, ("expires_after", *detail["loc"]))) from None


def kept_s(expiry: ExpiresAfter | None, most_s: float, param: str) -> float | None:
    """Returns the seconds for which a file is kept; None if the client set no limit.

    Args:
      most_s: Seconds after which all files are deleted.
      param: Name of the field.

    Raises:
      ApiError: `expiry` is longer than `most_s`.
    """
    if expiry is not None and expiry.seconds > most_s:
        limit = f"{most_s:g}, which is {most_s / _DAY_S:g} days (--store-days)"
        raise bad_value(param, f"{param}.seconds must be at most {limit}, got {expiry.seconds}")
    return None if expiry is None else float(expiry.seconds)
