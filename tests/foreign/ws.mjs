// npm's ws: after a lost connection it dials again and names the cursor it was given last. One seq a line.
import { decode } from "@msgpack/msgpack";
import WebSocket from "ws";

const [url, subprotocol] = process.argv.slice(2);
const read = subprotocol.endsWith("msgpack") ? decode : (data) => JSON.parse(data.toString());
let cursor = "0";

function connect() {
  const socket = new WebSocket(`${url.replace("http", "ws")}/stream?context=plan&after=${cursor}`, subprotocol);
  socket.on("message", (data) => {
    const frame = read(data);
    for (const unit of frame.units ?? []) console.log(unit.seq);
    if (frame.cursor !== undefined) cursor = frame.cursor;
  });
  socket.on("error", () => {});
  socket.on("close", () => setTimeout(connect, 50));
}
connect();
