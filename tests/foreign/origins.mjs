// What pages of three places can do with a bus: one of this machine, one from elsewhere, and one whose name was made to
// resolve to this machine. Their server is here; Chromium is told where their names lie.
import { createServer } from "node:http";
import { open } from "./chromium.mjs";

const [url, profile] = process.argv.slice(2);
const bus = new URL(url);
const server = createServer((_, response) => response.end("<!doctype html><title>a page</title>"));
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
const { port } = server.address();
const { context, page } = await open(profile, "--host-resolver-rules=MAP *.example 127.0.0.1");

async function tried(origin, target) {
  await page.goto(origin);
  return page.evaluate(async (target) => {
    const outcome = (promise) => promise.then(String, () => "refused");
    const unit = JSON.stringify({ context_id: "plan", agent_id: "page" });
    const post = (body, headers) => fetch(`${target}/workunit`, { method: "POST", body, headers });
    return {
      read: await outcome(fetch(`${target}/status`).then((response) => response.status)),
      write: await outcome(post(unit, { "Content-Type": "application/json" }).then((response) => response.status)),
      // No content type, no preflight: the request reaches the bus, and only the bus can refuse it.
      simpleWrite: await outcome(post(new Blob([unit])).then((response) => response.status)),
      stream: await outcome(
        new Promise((heard, failed) => {
          const source = new EventSource(`${target}/stream-sse?context=plan`);
          source.addEventListener("subscribed", () => heard("subscribed"));
          source.onerror = failed;
        }),
      ),
      socket: await outcome(
        new Promise((heard, failed) => {
          const socket = new WebSocket(`${target.replace("http", "ws")}/stream?context=plan`);
          socket.onmessage = (message) => heard(JSON.parse(message.data).event);
          socket.onerror = failed;
        }),
      ),
    };
  }, target);
}

const here = await tried(`http://localhost:${port}`, url);
const elsewhere = await tried(`http://evil.example:${port}`, url);
const rebound = await page
  .goto(`http://evil.example:${bus.port}/status`)
  .then((response) => response.status());
console.log(JSON.stringify({ here, elsewhere, rebound }));
server.close();
await context.close();
