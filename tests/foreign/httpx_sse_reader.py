"""Python's httpx-sse: reads until the connection ends, then asks again with the last id. One seq a line."""

import json
import sys

import httpx
import httpx_sse


def main(url: str) -> None:
    """For ever; whoever started this ends it."""
    last = "0"
    while True:
        try:
            with (
                httpx.Client(timeout=None) as http,
                httpx_sse.connect_sse(
                    http, "GET", f"{url}/stream-sse?context=plan", headers={"Last-Event-ID": last}
                ) as stream,
            ):
                for event in stream.iter_sse():
                    last = event.id or last
                    if event.event == "message":
                        print(json.loads(event.data)["seq"], flush=True)
        except httpx.TransportError:
            continue


if __name__ == "__main__":
    main(sys.argv[1])
