// The documentation page in headless Chromium: prints what it shows, and every request that leaves the bus's origin.
import { chromium } from "playwright-core";

const [url, profile, picture] = process.argv.slice(2);
const context = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  headless: true,
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
  ],
});
const page = await context.newPage();
const foreign = [];
const errors = [];
page.on("request", (request) => {
  if (!request.url().startsWith(url) && !request.url().startsWith("data:")) foreign.push(request.url());
});
page.on("pageerror", (error) => errors.push(String(error)));
await page.goto(`${url}/docs`, { waitUntil: "networkidle" });
await page.getByText("/workunit").first().waitFor();
const text = await page.evaluate(() => document.body.innerText);
if (picture) await page.screenshot({ path: picture, fullPage: true });
console.log(JSON.stringify({ foreign, errors, text }));
await context.close();
