"""`GET /docs`: a plain HTML page that lists the endpoints. FastAPI's page loads its scripts from other servers."""

import html
from collections.abc import Iterator, Mapping
from typing import Any, Final

from fastapi import APIRouter, Request, Response

router = APIRouter()

_HEADERS: Final = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>Roost: endpoints</title>
</head>
<body>
<h1>Endpoints</h1>
<p>OpenAI's clients take the address <code>{base}v1</code>.
<a href="{root}/openapi.json">openapi.json</a> has all fields and responses.</p>
<table>
<thead><tr><th align="left">method</th><th align="left">path</th><th align="left"></th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</body>
</html>
"""


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """Returns the page."""
    rows = "\n".join(_rows(request.app.openapi()["paths"]))
    base, root = html.escape(str(request.base_url)), html.escape(request.scope.get("root_path", ""))
    return Response(_PAGE.format(base=base, root=root, rows=rows), media_type="text/html", headers=_HEADERS)


def _rows(paths: Mapping[str, Any]) -> Iterator[str]:
    """Yields a row for each method of each path."""
    for path, methods in paths.items():
        for method, operation in methods.items():
            text = " ".join(operation.get("description", operation["summary"]).split("\n\n")[0].split())
            cells = (method.upper(), f"<code>{html.escape(path)}</code>", html.escape(text))
            yield f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
