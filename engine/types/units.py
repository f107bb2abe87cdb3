"""Human-readable sizes."""

from typing import Final

_UNITS: Final = ("KiB", "MiB", "GiB", "TiB")


def shown_bytes(count: int) -> str:
    """Returns a number of bytes in a binary unit: "512 B", "72.0 KiB", "16.4 MiB", "4.50 GiB".

    GiB and larger units have two decimals, since the second one still stands for tens of megabytes.
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
