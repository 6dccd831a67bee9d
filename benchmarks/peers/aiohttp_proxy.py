"""A reverse proxy in aiohttp as its users write it when they want speed: uvloop, raw server, one pooled session.

Small bodies are read whole, others stream. Usage: aiohttp_proxy.py LISTEN_PORT UPSTREAM_PORT
"""

from __future__ import annotations

import asyncio
import sys

import aiohttp
import uvloop
from aiohttp import hdrs, web
from multidict import CIMultiDict
from yarl import URL

HOP_BY_HOP = (
    hdrs.CONNECTION,
    hdrs.KEEP_ALIVE,
    hdrs.PROXY_AUTHENTICATE,
    hdrs.PROXY_AUTHORIZATION,
    hdrs.TE,
    hdrs.TRAILER,
    hdrs.TRANSFER_ENCODING,
    hdrs.UPGRADE,
)
SMALL_BYTES = 65536


async def serve(listen: int, upstream: int) -> None:
    """Run until killed."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=600)
    base = f"http://127.0.0.1:{upstream}"
    async with aiohttp.ClientSession(
        connector=connector,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        skip_auto_headers=(hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE),
    ) as session:

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            headers = CIMultiDict(request.headers)
            for name in HOP_BY_HOP:
                headers.popall(name, None)
            if request.remote:
                headers[hdrs.X_FORWARDED_FOR] = request.remote
            async with session.request(
                request.method,
                URL(base + request.raw_path, encoded=True),
                headers=headers,
                data=request.content if request.body_exists else None,
                allow_redirects=False,
            ) as answer:
                passed = CIMultiDict(answer.headers)
                for name in HOP_BY_HOP:
                    passed.popall(name, None)
                length = answer.content_length
                if length is not None and length <= SMALL_BYTES:
                    return web.Response(status=answer.status, headers=passed, body=await answer.read())
                response = web.StreamResponse(status=answer.status, headers=passed)
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response

        server = web.Server(handle, access_log=None, keepalive_timeout=600)
        runner = web.ServerRunner(server)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", listen, backlog=4096).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))
