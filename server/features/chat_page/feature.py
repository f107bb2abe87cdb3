"""The chat page, which prompts for the API key and sends requests only to this server; and its files, read once."""

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from fastapi import APIRouter, Response

from ...feature import Feature

router = APIRouter()

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
"""The document's icon, an SVG image, for `/favicon.ico`, which browsers request in addition to any other address."""

FILES: Final = {f"/{_PREFIX}/{name}": content for name, content in _FILES.items()}
"""Content of each file by its path on the server."""

_MEDIA_TYPES: Final = {"css": "text/css", "js": "text/javascript", "mjs": "text/javascript", "woff2": "font/woff2"}

_PAGE_HEADERS: Final = {
    "cache-control": "no-cache",
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "font-src 'self'",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types dompurify",
        )
    ),
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}

_ICON_HEADERS: Final = {"cache-control": "public, max-age=86400", "x-content-type-options": "nosniff"}

_FILE_HEADERS: Final = {
    "cache-control": "public, max-age=31536000, immutable",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
}


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """Returns the chat page."""
    return Response(PAGE, media_type="text/html", headers=_PAGE_HEADERS)


@router.get("/favicon.ico", include_in_schema=False)
async def icon() -> Response:
    """Returns the icon that browsers show for addresses without their own icon."""
    return Response(ICON, media_type="image/svg+xml", headers=_ICON_HEADERS)


def _file(path: str, content: bytes) -> Callable[[], Awaitable[Response]]:
    """Returns the handler that serves one file."""
    media_type = _MEDIA_TYPES[path.rpartition(".")[2]]

    async def file() -> Response:
        return Response(content, media_type=media_type, headers=_FILE_HEADERS)

    return file


for _path, _content in FILES.items():
    router.add_api_route(_path, _file(_path, _content), methods=["GET"], include_in_schema=False)

FEATURE: Final = Feature("chat_page", routers=(router,), public_paths=frozenset({"/", "/favicon.ico", *FILES}))
