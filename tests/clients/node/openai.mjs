// OpenAI's client: chat, responses, a parsed answer, and a tool that its helper runs.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY, maxRetries: 0 });
const City = z.object({ name: z.string().max(20), country: z.enum(["Spain", "France"]), isCapital: z.boolean() });
const messages = [{ role: "user", content: "What is the capital of Spain?" }];
const ask = { model: "demo", messages, max_completion_tokens: 200, temperature: 0 };
const found = {};

found.chat = (await client.chat.completions.create(ask)).choices[0].message.content;

found.stream = await client.chat.completions.stream(ask).finalContent();

const parsed = await client.chat.completions.parse({ ...ask, response_format: zodResponseFormat(City, "city") });
found.parsed = parsed.choices[0].message.parsed;

const response = await client.responses.parse({
  model: "demo",
  input: "Tell me of Madrid.",
  max_output_tokens: 200,
  temperature: 0,
  text: { format: zodTextFormat(City, "city") },
});
found.responseParsed = response.output_parsed;

found.responded = "";
for await (const event of await client.responses.create({
  model: "demo",
  input: messages,
  max_output_tokens: 200,
  temperature: 0,
  stream: true,
}))
  if (event.type === "response.output_text.delta") found.responded += event.delta;

const tool = {
  type: "function",
  function: {
    name: "weather",
    parameters: { type: "object", properties: { city: { enum: ["Madrid", "Rome"] } }, required: ["city"] },
  },
};
const called = await client.chat.completions.create({ ...ask, tools: [tool], tool_choice: "required" });
found.calls = called.choices[0].message.tool_calls.map((call) => [call.function.name, JSON.parse(call.function.arguments)]);
const results = called.choices[0].message.tool_calls.map((call) => ({
  role: "tool",
  tool_call_id: call.id,
  content: "sunny",
}));
const after = await client.chat.completions.create({
  ...ask,
  messages: [...messages, called.choices[0].message, ...results],
  tools: [tool],
  tool_choice: "none",
});
found.afterTool = after.choices[0].message.content;

found.models = [];
for await (const model of client.models.list()) found.models.push(model.id);

const conversation = await client.conversations.create({ items: [{ role: "user", content: "My name is Anna." }] });
const turn = await client.responses.create({
  model: "demo",
  input: "What is the capital of Spain?",
  conversation: conversation.id,
  max_output_tokens: 200,
  temperature: 0,
});
found.conversation = [turn.conversation.id === conversation.id];
for await (const item of client.conversations.items.list(conversation.id, { order: "asc", limit: 2 }))
  found.conversation.push(item.role);
await client.conversations.delete(conversation.id);

found.failure = await client.chat.completions
  .create({ ...ask, model: "gpt-5" })
  .catch((error) => [error.status, error.code]);

console.log(JSON.stringify(found));
