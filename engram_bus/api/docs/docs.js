// The docs page: every operation of openapi.json with a form to try it, and a live view by EventSource.
// Nothing is loaded from anywhere but the bus.

const UNITS_SHOWN = 200;
const BYTES_SHOWN = 100_000;

const byId = (id) => document.getElementById(id);

// An element with attributes and children; text is always text, never markup.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// Text in which `code` stands as such.
function prose(text) {
  return text.split("`").map((part, index) => (index % 2 ? make("code", {}, part) : part));
}

// --- Operations ------------------------------------------------------------------------------------------------------

async function showOperations() {
  const api = await (await fetch("openapi.json")).json();
  byId("version").textContent = api.info.version;
  byId("about").append(...prose(api.info.description));
  for (const tag of api.tags) {
    const found = operationsOf(api, tag.name);
    byId("operations").append(make("h2", {}, tag.name), make("p", { class: "quiet" }, tag.description));
    byId("operations").append(...found.map((operation) => show(operation, api)));
  }
}

function operationsOf(api, tag) {
  return Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods)
      .filter(([, operation]) => operation.tags.includes(tag))
      .map(([method, operation]) => ({ ...operation, method: method.toUpperCase(), path })),
  );
}

function show(operation, api) {
  const details = make(
    "details",
    { id: operation.operationId, class: "operation" },
    make(
      "summary",
      {},
      make("span", { class: `method ${operation.method.toLowerCase()}` }, operation.method),
      make("span", { class: "path" }, operation.path),
      make("span", { class: "quiet" }, ...prose(operation.summary)),
    ),
  );
  // Filled when it is opened: the page stays quick, however many operations there are.
  details.addEventListener("toggle", () => details.append(tryIt(operation), answers(operation, api)), { once: true });
  return details;
}

function tryIt(operation) {
  const form = make("form");
  const rows = operation.parameters.map((parameter) =>
    make(
      "tr",
      {},
      make("td", {}, make("code", {}, parameter.name), parameter.required ? " (required)" : ""),
      make("td", {}, field(parameter)),
      make("td", { class: "quiet" }, `${parameter.description} (${parameter.in})`),
    ),
  );
  if (rows.length) form.append(make("table", {}, make("tbody", {}, ...rows)));
  if (operation.requestBody) form.append(bodyFields(operation.requestBody.content));
  const answer = make("div", { class: "answer", "aria-live": "polite" });
  // A stream has no end to wait for: the view above shows it.
  if (!operation.responses["200"]?.content["text/event-stream"]) form.append(make("button", {}, "Send"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(operation, form, answer);
  });
  return make("div", {}, form, answer);
}

function field(parameter) {
  const schema = parameter.schema;
  const name = `${parameter.in}:${parameter.name}`;
  const label = { name, "aria-label": parameter.name };
  const choices = schema.enum ?? (schema.type === "boolean" ? ["true", "false"] : null);
  if (choices) return make("select", label, make("option"), ...choices.map((choice) => make("option", {}, choice)));
  const hint = schema.type === "array" ? "one, or several a, b" : schema.default;
  return make("input", { ...label, placeholder: hint, required: parameter.required, "data-many": schema.type === "array" });
}

function bodyFields(content) {
  // MessagePack cannot be typed in; everything else can.
  const types = Object.keys(content).filter((type) => content[type].example !== undefined);
  const select = make("select", { name: "type", "aria-label": "content type" }, ...types.map((type) => make("option", {}, type)));
  const area = make("textarea", { name: "body", "aria-label": "body", spellcheck: "false" });
  const fill = () => {
    const { example } = content[select.value];
    area.value = typeof example === "string" ? example : JSON.stringify(example, null, 2);
  };
  select.addEventListener("change", fill);
  fill();
  return make("div", {}, select, area);
}

async function send(operation, form, answer) {
  const request = requestOf(operation, new FormData(form), form);
  answer.replaceChildren(make("pre", { class: "curl" }, curl(request)));
  try {
    const response = await fetch(request.url, request);
    const text = await response.text();
    const headers = [...response.headers].map(([name, value]) => `${name}: ${value}`).join("\n");
    answer.append(
      make("pre", { class: response.ok ? "status" : "status bad" }, `${response.status}\n${headers}`),
      make("pre", { class: "body" }, pretty(text)),
    );
  } catch (error) {
    answer.append(make("pre", { class: "status bad" }, `no answer: ${error.message}`));
  }
}

function requestOf(operation, data, form) {
  let path = operation.path;
  const query = new URLSearchParams();
  const headers = {};
  for (const parameter of operation.parameters) {
    const text = data.get(`${parameter.in}:${parameter.name}`);
    if (!text) continue;
    if (parameter.in === "path") path = path.replace(`{${parameter.name}}`, encodeURIComponent(text));
    else if (parameter.in === "header") headers[parameter.name] = text;
    else if (form.elements[`query:${parameter.name}`].dataset.many === undefined) query.append(parameter.name, text);
    else for (const one of text.split(",")) query.append(parameter.name, one.trim());
  }
  const request = { method: operation.method, headers };
  if (operation.requestBody) {
    headers["Content-Type"] = data.get("type");
    request.body = data.get("body");
  }
  const asked = query.toString();
  request.url = new URL(path.slice(1) + (asked ? `?${asked}` : ""), document.baseURI).href;
  return request;
}

function curl(request) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const parts = [`curl -X ${request.method} ${quoted(request.url)}`];
  for (const [name, value] of Object.entries(request.headers)) parts.push(`-H ${quoted(`${name}: ${value}`)}`);
  if (request.body !== undefined) parts.push(`--data-binary ${quoted(request.body)}`);
  return parts.join(" \\\n  ");
}

function pretty(text) {
  const cut = (whole) => (whole.length > BYTES_SHOWN ? `${whole.slice(0, BYTES_SHOWN)}\n... cut here` : whole);
  try {
    return cut(JSON.stringify(JSON.parse(text), null, 2));
  } catch {
    return cut(text);
  }
}

function answers(operation, api) {
  const rows = Object.entries(operation.responses).map(([status, answer]) =>
    make("tr", {}, make("td", {}, make("code", {}, status)), make("td", {}, ...prose(answer.description), ...headersOf(answer))),
  );
  return make("div", {}, make("strong", {}, "Answers"), make("table", {}, make("tbody", {}, ...rows)), schemas(operation, api));
}

function headersOf(answer) {
  const names = Object.keys(answer.headers ?? {});
  return names.length ? [make("div", { class: "quiet" }, `Headers: ${names.join(", ")}`)] : [];
}

// The schemas an operation refers to, with all that they refer to.
function schemas(operation, api) {
  const found = new Map();
  const visit = (value) => {
    if (value === null || typeof value !== "object") return;
    const name = typeof value.$ref === "string" ? value.$ref.split("/").pop() : null;
    if (name && !found.has(name)) {
      found.set(name, api.components.schemas[name]);
      visit(found.get(name));
    }
    Object.values(value).forEach(visit);
  };
  visit(operation.requestBody);
  visit(operation.responses);
  const shown = [...found].map(([name, schema]) =>
    make("details", {}, make("summary", {}, make("code", {}, name)), make("div", {}, make("pre", {}, JSON.stringify(schema, null, 2)))),
  );
  return make("div", {}, make("strong", {}, "Schemas"), ...shown);
}

// --- The live view ---------------------------------------------------------------------------------------------------

let source = null;

function watch(event) {
  event.preventDefault();
  source?.close();
  byId("units").replaceChildren();
  const data = new FormData(byId("watch"));
  const query = new URLSearchParams({ context: data.get("context") });
  if (data.get("after")) query.set("after", data.get("after"));
  // EventSource reconnects by itself, and the bus resumes it after the id it saw last.
  source = new EventSource(`stream-sse?${query}`);
  source.onmessage = (message) => {
    showUnit(JSON.parse(message.data));
    where(`at ${message.lastEventId}`);
  };
  source.onerror = () => {
    const isOver = source.readyState === EventSource.CLOSED;
    where(isOver ? "refused: is `after` a cursor of this bus?" : "reconnecting");
  };
  for (const name of ["subscribed", "heartbeat"]) {
    source.addEventListener(name, (message) => where(`at ${JSON.parse(message.data).cursor}`));
  }
  source.addEventListener("gap", (message) => where(`a gap: ${message.data}`));
  source.addEventListener("goaway", () => where("the bus stops; reconnecting"));
}

function where(text) {
  byId("where").textContent = text;
}

function showUnit(unit) {
  const text = unit.payload_base64 ?? (typeof unit.payload === "string" ? unit.payload : JSON.stringify(unit.payload));
  const row = make(
    "li",
    { title: unit.ts },
    make("span", { class: "quiet" }, String(unit.seq)),
    make("span", {}, `${unit.context_id} ${unit.agent_id}`),
    make("span", { class: "quiet" }, unit.kind ?? unit.type),
    make("span", {}, (text ?? "").slice(0, 500)),
  );
  byId("units").prepend(row);
  while (byId("units").childElementCount > UNITS_SHOWN) byId("units").lastChild.remove();
}

byId("watch").addEventListener("submit", watch);
await showOperations();
