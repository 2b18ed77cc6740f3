"""Parts of an HTTP server: bounded bodies, a bearer token, clear errors for malformed requests, orderly
shutdown. Shared by `render.server` and the servers built on this package."""

from __future__ import annotations

import asyncio
import hmac
import signal

from fastapi import FastAPI, Request
from pydantic import ValidationError

BODY_TIMEOUT_S = 30.0


class BodyError(Exception):
    """A body that is refused: HTTP status and reason."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The request's body. Raises `BodyError`: 413 when it is longer than the limit, 408 when it stalls."""
    too_large = BodyError(413, f"the request is larger than {limit_bytes} bytes")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for piece in request.stream():
                body += piece
                if len(body) > limit_bytes:
                    raise too_large
    except TimeoutError:
        raise BodyError(408, f"the request did not arrive within {BODY_TIMEOUT_S:g} s") from None
    return bytes(body)


def authorised(request: Request, token: str) -> bool:
    """Whether the request brings the bearer token, compared in constant time."""
    given = request.headers.get("authorization", "")
    return hmac.compare_digest(given.encode(), f"Bearer {token}".encode())


def explain(error: ValueError | RecursionError) -> str:
    """One line that says what is wrong with a body: no JSON, or not of the expected shape."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}"
    return f"the body is no valid JSON ({type(error).__name__})"


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; then finish what was accepted and return."""
    import uvicorn

    # uvicorn shuts down in good order and then raises the signal again; that is no failure here.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    uvicorn.run(app, host=host, port=port, log_level="info", access_log=False)
