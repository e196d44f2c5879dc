// Headless Chromium that talks to nobody by itself, with a profile of its own.
import { chromium } from "playwright-core";

export async function open(profile, ...flags) {
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    headless: true,
    args: [
      "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
      "--disable-background-networking", "--disable-component-update", "--disable-sync",
      ...flags,
    ],
  });
  return { context, page: await context.newPage() };
}
