"""Speaks TLS for servers that don't: `python -m tests.tls FOLDER FROM:TO …`, with the certificate in the folder."""

import asyncio
import contextlib
import ssl
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path


async def main(folder: Path, ports: list[list[int]]) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "auth.example.pem", folder / "auth.example.key")
    for at, behind in ports:
        await asyncio.start_server(before(behind), "127.0.0.1", at, ssl=context)
    await asyncio.Event().wait()


def before(port: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, there_writer), copy(there_reader, writer))

    return serve


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), [[int(port) for port in pair.split(":")] for pair in sys.argv[2:]]))
