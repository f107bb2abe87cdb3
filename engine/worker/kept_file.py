"""Files in the folder of compiled programs. One start may read a file while another writes it."""

import contextlib
import os
import uuid
from pathlib import Path


def keep_file(path: Path, content: bytes) -> None:
    """Writes a whole file; does nothing if its folder is not writable."""
    temporary = path.with_name(f"{path.name}-{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
