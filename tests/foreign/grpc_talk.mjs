// The conversation of conversation.py, held by npm's grpc-js: what the bus said to it.
import { asker, connected, connectedBeside } from "./grpc.mjs";

const [address, google] = process.argv.slice(2);
const bus = connected(address);
const { health, reflection } = connectedBeside(address);
const ask = asker(bus, google);

async function talk() {
  const { work_unit: unit, durability } = await ask("Append", said("I take the parser"), { "x-agent-id": "ann" });
  const { locks: [lock] } = await ask("AcquireLock", { resources: ["repo/src"], agent_id: "ann", reason: "rewrite" });
  const held = await ask("AcquireLock", { resources: ["repo/src/a.py"], agent_id: "bob" });
  const fence = { resource: "repo/src/a.py", token: lock.fencing_token };
  const raw = { context_id: "plan", content_type: "application/octet-stream", payload: Buffer.from([0, 255]), fence };
  const fenced = await ask("Append", { ...raw, agent_id: "ann" });
  const stale = await ask("Append", { ...raw, agent_id: "bob" });
  const streamed = await appended([
    [{ id: 1, append: said("the lexer is done", "bob") }, { id: 2, append: said("the tests pass", "bob") }],
    [{ id: 3, append: { agent_id: "bob" } }],
    [{ id: 4, append: said("so I go home", "bob") }],
  ]);
  const found = await ask("Search", { query: "parser", include: "UNITS", min_seq: 6, limit: 1 });
  return {
    appended: [unit.seq, unit.version, unit.agent_id, unit.type, unit.payload.toString(), durability],
    granted: [lock.resource, lock.holder_agent, lock.fencing_token],
    held: [held.status, held.code, held.details.fields.holder_agent.stringValue],
    fenced: fenced.work_unit.seq,
    stale: [stale.status, stale.code],
    streamed: streamed.sort(([one], [other]) => one - other),
    found: found.results.map((result) => result.unit.payload.toString()),
    heard: await heard(5),
    health: await healthOf("engram.v1.EngramBus"),
    services: await services(),
  };
}

const said = (text, agent) => ({ context_id: "plan", agent_id: agent, payload: Buffer.from(text) });

function appended(messages) {
  const stream = bus.AppendStream();
  const results = [];
  stream.on("data", (message) => {
    for (const { id, receipt, error } of message.results) results.push([id, receipt ? receipt.seq : error.code]);
  });
  for (const items of messages) stream.write({ items });
  stream.end();
  return new Promise((ended, failed) => stream.on("error", failed).on("end", () => ended(results)));
}

function heard(count) {
  const stream = bus.Subscribe({ context: ["plan"], after: "0" });
  const units = [];
  return new Promise((all, failed) => {
    stream.on("error", failed);
    stream.on("data", (message) => {
      for (const { seq, agent_id, payload } of message.work_units) {
        units.push([seq, agent_id, payload.toString("base64")]);
      }
      if (units.length < count) return;
      all(units);
      stream.cancel();
    });
  });
}

function healthOf(service) {
  return new Promise((told, failed) => {
    health.Check({ service }, (error, answer) => (error ? failed(error) : told(answer.status)));
  });
}

function services() {
  const call = reflection.ServerReflectionInfo();
  call.write({ list_services: "*" });
  return new Promise((listed, failed) => {
    call.on("error", failed);
    call.on("data", ({ list_services_response: { service } }) => {
      call.end();
      listed(service.map(({ name }) => name).sort());
    });
  });
}

console.log(JSON.stringify(await talk()));
for (const client of [bus, health, reflection]) client.close();
