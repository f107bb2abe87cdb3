"""Sizes as people read them."""

from typing import Final

_UNITS: Final = ("KiB", "MiB", "GiB", "TiB")


def shown_bytes(count: int) -> str:
    """Returns a number of bytes in the binary unit that fits its size: "512 B", "72.0 KiB", "16.4 MiB", "4.50 GiB".

    One decimal is enough below a GiB; from there on the second one is tens of megabytes.
    """
    if count < 1024:
        return f"{count:,} B"
    size = float(count)
    for unit in _UNITS:
        size /= 1024
        digits = 2 if unit in ("GiB", "TiB") else 1
        if round(size, digits) < 1024 or unit == _UNITS[-1]:
            break
    return f"{size:,.{digits}f} {unit}"
