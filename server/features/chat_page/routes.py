"""`GET /`: the chat page, which sends requests only to this server, and its files."""

from collections.abc import Awaitable, Callable
from typing import Final

from fastapi import APIRouter, Response

from . import FILES, ICON, PAGE

router = APIRouter()

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
    "referrer-policy": "no-referrer",
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
    """Returns the icon that browsers show for addresses without one of their own."""
    return Response(ICON, media_type="image/svg+xml", headers=_ICON_HEADERS)


def _file(path: str, content: bytes) -> Callable[[], Awaitable[Response]]:
    """Returns the handler that serves one file."""
    media_type = _MEDIA_TYPES[path.rpartition(".")[2]]

    async def file() -> Response:
        return Response(content, media_type=media_type, headers=_FILE_HEADERS)

    return file


for _path, _content in FILES.items():
    router.add_api_route(_path, _file(_path, _content), methods=["GET"], include_in_schema=False)
