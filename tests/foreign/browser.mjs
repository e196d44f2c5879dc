// A browser's own EventSource, in headless Chromium, on a page of the bus. One seq a line; errors of the page on stderr.
import { open } from "./chromium.mjs";

const [url, profile] = process.argv.slice(2);
const { context, page } = await open(profile);
page.on("pageerror", (error) => console.error(error));
await page.exposeFunction("received", (seq) => console.log(seq));
await page.goto(`${url}/healthz`);
await page.evaluate(() => {
  const source = new EventSource("/stream-sse?context=plan&after=0");
  source.onmessage = (message) => window.received(JSON.parse(message.data).seq);
});
process.stdin.resume();
process.stdin.on("end", () => context.close().then(() => process.exit()));
