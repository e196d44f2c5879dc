// npm's EventSource: it reconnects and resumes (Last-Event-ID) by itself. One seq a line.
import { EventSource } from "eventsource";

const source = new EventSource(`${process.argv[2]}/stream-sse?context=plan&after=0`);
source.onmessage = (message) => console.log(JSON.parse(message.data).seq);
