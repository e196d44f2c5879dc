// npm's grpc-js: when its stream ends it subscribes again and names the cursor it was given last. One seq a line.
import { connected } from "./grpc.mjs";

const bus = connected(process.argv[2]);
let cursor = "0";

function subscribe() {
  const stream = bus.Subscribe({ context: ["plan"], after: cursor });
  stream.on("data", (message) => {
    for (const unit of message.work_units) console.log(unit.seq);
    cursor = message.cursor;
  });
  stream.on("error", () => {});
  stream.on("status", () => setTimeout(subscribe, 50));
}
subscribe();
