"""The path prefix under which a proxy offers the server."""

from starlette.types import ASGIApp, Receive, Scope, Send


class RootPath:
    """Removes a proxy's prefix from paths, and adds it to links to the server.

    The wrapped application, including access control, sees paths without the prefix. This is the outermost middleware.

    Args:
      app: Wrapped application.
      prefix: Prefix, such as "/llm".
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path, prefix = scope["path"], self._prefix
            scope["root_path"] = prefix
            if path == prefix or path.startswith(f"{prefix}/"):
                scope["path"] = path.removeprefix(prefix) or "/"
                scope["raw_path"] = scope.get("raw_path", b"").removeprefix(prefix.encode()) or b"/"
        await self._app(scope, receive, send)
