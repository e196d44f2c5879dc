// Clients that npm's grpc-js makes of proto files alone: the bus's own, and those of the services beside it.
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { credentials, loadPackageDefinition, Metadata, status } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const here = dirname(fileURLToPath(import.meta.url));
const beside = (name) => dirname(createRequire(import.meta.url).resolve(`${name}/package.json`));
const own = join(here, "../../proto");
const others = [
  join(beside("grpc-health-check"), "proto"),
  join(beside("@grpc/reflection"), "build/proto"),
];
const ways = { keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true };

export function connected(address) {
  const { engram } = load([own], ["engram/v1/bus.proto"]);
  return new engram.v1.EngramBus(address, credentials.createInsecure());
}

export function connectedBeside(address) {
  const files = ["health/v1/health.proto", "grpc/reflection/v1alpha/reflection.proto"];
  const { health, reflection } = load(others, files).grpc;
  return {
    health: new health.v1.Health(address, credentials.createInsecure()),
    reflection: new reflection.v1alpha.ServerReflection(address, credentials.createInsecure()),
  };
}

// The answer, or what is in the way: the status and the Error among its details. `google` holds google/rpc/status.proto.
export function asker(client, google) {
  const messages = loadSync(["google/rpc/status.proto", "engram/v1/error.proto"], { ...ways, includeDirs: [google, own] });
  const refusal = (failed) => {
    const [packed] = failed.metadata.get("grpc-status-details-bin");
    const { details } = messages["google.rpc.Status"].deserialize(packed);
    return { status: status[failed.code], ...messages["engram.v1.Error"].deserialize(details[0].value) };
  };
  return (method, request, named = {}) =>
    new Promise((answered) => {
      const metadata = new Metadata();
      for (const [name, value] of Object.entries(named)) metadata.set(name, value);
      client[method](request, metadata, (failed, answer) => answered(failed ? refusal(failed) : answer));
    });
}

function load(includeDirs, files) {
  return loadPackageDefinition(loadSync(files, { ...ways, includeDirs }));
}
