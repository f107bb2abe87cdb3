// OpenAI's client: its example of a batch, from the file of requests to that of responses; then a cancelled batch.
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY, maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of Spain?" }];
const found = {};

const folder = fs.mkdtempSync(path.join(os.tmpdir(), "batch-"));
const name = path.join(folder, "batchinput.jsonl");
const line = (number) => ({
  custom_id: `request-${number}`,
  method: "POST",
  url: "/v1/chat/completions",
  body: { model: "demo", messages, max_tokens: 200, temperature: 0 },
});
fs.writeFileSync(name, [1, 2].map((number) => JSON.stringify(line(number))).join("\n"));

const file = await client.files.create({ file: fs.createReadStream(name), purpose: "batch" });
fs.rmSync(folder, { recursive: true });
found.file = [file.object, file.filename, file.purpose];

const request = { input_file_id: file.id, endpoint: "/v1/chat/completions", completion_window: "24h" };
let batch = await client.batches.create(request);
while (batch.status === "in_progress") {
  await new Promise((resolve) => setTimeout(resolve, 100));
  batch = await client.batches.retrieve(batch.id);
}
found.status = batch.status;
found.counts = batch.request_counts;

const lines = (await (await client.files.content(batch.output_file_id)).text()).trim().split("\n").map(JSON.parse);
found.answers = lines.map((each) => [each.custom_id, each.response.body.choices[0].message.content]);

const second = await client.batches.create(request);
found.cancelled = (await client.batches.cancel(second.id)).status;
found.listed = [];
for await (const each of client.batches.list()) found.listed.push(each.id === batch.id ? "first" : "second");
found.deleted = (await client.files.delete(file.id)).deleted;

console.log(JSON.stringify(found));
