"""Files beside the compiled programs, which later starts may read while others write them."""

import contextlib
import os
import uuid
from pathlib import Path


def keep_file(path: Path, content: bytes) -> None:
    """Writes a file whole, or leaves nothing behind if its folder takes no files."""
    temporary = path.with_name(f"{path.name}-{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
