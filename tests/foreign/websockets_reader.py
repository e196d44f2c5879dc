"""Python's websockets, whose client dials again by itself. One seq a line."""

import asyncio
import json
import sys

import msgpack
import websockets


async def main(url: str, subprotocol: str) -> None:
    """For ever; whoever started this ends it."""
    cursor = "0"
    read = json.loads if subprotocol.endswith("json") else msgpack.unpackb
    while True:
        try:
            address = f"{url.replace('http', 'ws')}/stream?context=plan&after={cursor}"
            async with websockets.connect(address, subprotocols=[websockets.Subprotocol(subprotocol)]) as socket:
                async for message in socket:
                    frame = read(message)
                    for unit in frame.get("units", ()):
                        print(unit["seq"], flush=True)
                    cursor = frame.get("cursor", cursor)
        except (OSError, websockets.WebSocketException):
            continue


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
