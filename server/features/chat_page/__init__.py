"""The chat page's files, read once: HTML, styles, scripts and the vendored libraries."""

import hashlib
from pathlib import Path
from typing import Final
from urllib.parse import unquote

_FOLDER: Final = Path(__file__).parent

_FILES: Final = {
    path.relative_to(_FOLDER).as_posix(): path.read_bytes()
    for path in sorted(_FOLDER.rglob("*"))
    if path.suffix in (".css", ".js", ".mjs", ".woff2")
}

_DIGEST: Final = hashlib.sha256(b"\0".join(_FILES.values())).hexdigest()[:16]
_PREFIX: Final = f"chat-page/{_DIGEST}"
"""Prefix that changes with any file, so that browsers may cache the files permanently and never mix two versions."""

PAGE: Final = (_FOLDER / "index.html").read_text(encoding="utf-8").replace("{files}", _PREFIX)
"""The document. Its addresses are relative, since a proxy may serve it below a path."""

ICON: Final = unquote(PAGE.partition('href="data:image/svg+xml,')[2].partition('"')[0]).encode()
"""The document's icon, an SVG image, for `/favicon.ico`, which browsers ask for beside any other address."""

FILES: Final = {f"/{_PREFIX}/{name}": content for name, content in _FILES.items()}
"""Content of each file by its path on the server."""
