"""Addresses of stores, whose passwords are never shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.server.database.address import StoreAddress


@pytest.mark.parametrize(
    ("text", "kind", "target", "shown"),
    [
        ("memory:", "memory", "", "memory:"),
        ("sqlite:///var/lib/roost.db", "sqlite", "/var/lib/roost.db", "sqlite:///var/lib/roost.db"),
        ("sqlite:////var/lib/roost.db", "sqlite", "/var/lib/roost.db", "sqlite:///var/lib/roost.db"),
        ("postgresql://h/db", "postgresql", "postgresql://h/db", "postgresql://h/db"),
        ("postgres://u@h/db", "postgresql", "postgresql://u@h/db", "postgresql://u@h/db"),
        ("postgresql://u:p@h:5/db", "postgresql", "postgresql://u:p@h:5/db", "postgresql://u:***@h:5/db"),
        (
            "postgresql://h/db?user=u&password=p&sslmode=require",
            "postgresql",
            "postgresql://h/db?user=u&password=p&sslmode=require",
            "postgresql://h/db?user=u&password=***&sslmode=require",
        ),
    ],
)
def test_an_address_is_parsed(text: str, kind: str, target: str, shown: str) -> None:
    address = StoreAddress.parse(text)
    assert (address.kind, address.target, str(address)) == (kind, target, shown)


@pytest.mark.parametrize("text", ["", "memory", "sqlite:x.db", "sqlite://x.db", "sqlite:///", "mysql://h/db", "/x"])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be memory:"):
        StoreAddress.parse(text)


@given(st.text(st.characters(codec="ascii", exclude_characters="/?#", categories=("L", "N", "P", "S")), min_size=9))
def test_a_password_is_never_shown(password: str) -> None:
    """Also one with an `@` in it, which should be written as `%40`."""
    address = StoreAddress.parse(f"postgresql://u:{password}@host/db")
    assert password not in str(address)
    assert password not in repr(address)
