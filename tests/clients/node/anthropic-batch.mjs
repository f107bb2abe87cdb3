// Anthropic's client: a batch of messages, from its requests to their results; then a cancelled batch.
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({ baseURL: process.env.SERVER_URL, apiKey: process.env.API_KEY, maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of Spain?" }];
const params = { model: "demo", messages, max_tokens: 200, temperature: 0 };
const requests = [1, 2].map((number) => ({ custom_id: `request-${number}`, params }));
const found = {};

let batch = await client.messages.batches.create({ requests });
while (batch.processing_status === "in_progress") {
  await new Promise((resolve) => setTimeout(resolve, 100));
  batch = await client.messages.batches.retrieve(batch.id);
}
found.status = batch.processing_status;
found.counts = batch.request_counts;

found.results = [];
for await (const { custom_id: name, result } of await client.messages.batches.results(batch.id))
  found.results.push([name, result.type, result.message.content.map((block) => block.text ?? "").join("")]);

const second = await client.messages.batches.create({ requests });
found.cancelled = (await client.messages.batches.cancel(second.id)).processing_status;
found.listed = [];
for await (const each of client.messages.batches.list()) found.listed.push(each.id === batch.id ? "first" : "second");
found.deleted = (await client.messages.batches.delete(batch.id)).type;
found.gone = await client.messages.batches.retrieve(batch.id).catch((error) => error.status);

console.log(JSON.stringify(found));
