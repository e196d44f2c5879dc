// The documentation page in headless Chromium: what it shows, what comes of trying an append on it and of watching, and
// every request that leaves the bus's origin.
import { open } from "./chromium.mjs";

const [url, profile, picture] = process.argv.slice(2);
const { context, page } = await open(profile);
const foreign = [];
const errors = [];
page.on("request", (request) => {
  if (!request.url().startsWith(url) && !request.url().startsWith("data:")) foreign.push(request.url());
});
page.on("pageerror", (error) => errors.push(String(error)));
page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
await page.goto(`${url}/docs`, { waitUntil: "networkidle" });
await page.getByText("/workunit").first().waitFor();
const text = await page.evaluate(() => document.body.innerText);

await page.getByRole("button", { name: "Watch" }).click();
await page.getByText(/^at /).waitFor();
const append = page.locator("#append");
await append.locator("summary").first().click();
await append.getByRole("button", { name: "Send" }).click();
const answer = await append.locator(".answer .status").innerText();
const live = await page.locator("#units li").first().innerText();
if (picture) await page.screenshot({ path: picture, fullPage: true });
console.log(JSON.stringify({ foreign, errors, text, answer, live }));
await context.close();
