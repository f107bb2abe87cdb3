"""Prints the schemas of pydantic in schemas.jsonl: `python from_pydantic.py`."""

import json
from decimal import Decimal
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Len, Lt, MultipleOf
from pydantic import BaseModel, TypeAdapter, conint


class Wallet(BaseModel):
    """A model that refers to another."""

    id: Annotated[int, Ge(-(2**63)), Le(2**63 - 1)]
    balance: Annotated[float, Ge(-(2**63)), Le(2**63)]
    parent: "Wallet | None" = None


TYPES: dict[str, Any] = {
    "conint(ge=-(2**63), le=2**63 - 1)": conint(ge=-(2**63), le=2**63 - 1),
    "conint(ge=0, le=2**64 - 1)": conint(ge=0, le=2**64 - 1),
    "conint(gt=-(2**63), lt=2**63)": conint(gt=-(2**63), lt=2**63),
    "Annotated[int, Ge(2**62)]": Annotated[int, Ge(2**62)],
    "Annotated[int, Ge(10**30), Le(10**31)]": Annotated[int, Ge(10**30), Le(10**31)],
    "Annotated[int, MultipleOf(10**12)]": Annotated[int, MultipleOf(10**12)],
    "Annotated[float, Gt(0), Lt(1e-200)]": Annotated[float, Gt(0), Lt(1e-200)],
    "Annotated[float, Ge(-1e308), Le(1e308)]": Annotated[float, Ge(-1e308), Le(1e308)],
    "Annotated[float, Ge(1), Le(1)]": Annotated[float, Ge(1), Le(1)],
    "Annotated[float, Gt(2**53 + 2)]": Annotated[float, Gt(2**53 + 2)],
    "Annotated[Decimal, Ge(0), Le(10**20)]": Annotated[Decimal, Ge(0), Le(10**20)],
    "Annotated[Decimal, MultipleOf(Decimal('1e-30'))]": Annotated[Decimal, MultipleOf(Decimal("1e-30"))],
    "Annotated[str, Len(1, 2**40)]": Annotated[str, Len(1, 2**40)],
    "Annotated[list[Annotated[float, Ge(1e-100)]], Len(1, 2**33)]": Annotated[
        list[Annotated[float, Ge(1e-100)]], Len(1, 2**33)
    ],
    "Wallet": Wallet,
}
for source, made in TYPES.items():
    print(json.dumps({"source": source, "schema": TypeAdapter(made).json_schema()}))
