"""`GET /`: a page to chat with, which asks nobody but this server."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Response

router = APIRouter()

_PAGE: Final = (Path(__file__).parents[1] / "chat_page.html").read_text(encoding="utf-8")


def _hashes(tag: str) -> str:
    """What a policy calls the inline texts of this tag."""
    texts = re.findall(rf"<{tag}>(.*?)</{tag}>", _PAGE, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    return " ".join(f"'sha256-{digest}'" for digest in digests)


_HEADERS: Final = {
    "cache-control": "no-cache",
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hashes('script')}",
            f"style-src {_hashes('style')}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@router.get("/", include_in_schema=False)
async def page() -> Response:
    return Response(_PAGE, media_type="text/html", headers=_HEADERS)
