// Anthropic's client: messages, streams, tokens counted, a parsed answer, and a tool that its runner runs.
import Anthropic from "@anthropic-ai/sdk";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";

const client = new Anthropic({ baseURL: process.env.SERVER_URL, apiKey: process.env.API_KEY, maxRetries: 0 });
const City = z.object({ name: z.enum(["Madrid", "Paris"]), country: z.enum(["Spain", "France"]), isCapital: z.boolean() });
const messages = [{ role: "user", content: "What is the capital of Spain?" }];
const ask = { model: "demo", messages, max_tokens: 200 };
const text = (message) => message.content.map((block) => block.text ?? "").join("");
const found = {};

const message = await client.messages.create({ ...ask, system: "Answer briefly.", temperature: 0 });
found.chat = text(message);
found.usage = message.usage;

found.stream = text(await client.messages.stream({ ...ask, temperature: 0 }).finalMessage());

found.tokens = (await client.messages.countTokens({ model: "demo", messages })).input_tokens;

const tool = {
  name: "weather",
  description: "Returns the weather in a city",
  input_schema: { type: "object", properties: { city: { enum: ["Madrid", "Rome"] } }, required: ["city"] },
};
const called = await client.messages.create({ ...ask, temperature: 0, tools: [tool], tool_choice: { type: "any" } });
const calls = called.content.filter((block) => block.type === "tool_use");
found.calls = calls.map((call) => [call.name, call.input]);
const results = calls.map((call) => ({ type: "tool_result", tool_use_id: call.id, content: "sunny" }));
const turns = [...messages, { role: "assistant", content: called.content }, { role: "user", content: results }];
found.afterTool = text(await client.messages.create({ ...ask, messages: turns, tools: [tool], tool_choice: { type: "none" } }));

found.streamedCalls = (
  await client.messages
    .stream({ ...ask, temperature: 0, tools: [tool], tool_choice: { type: "tool", name: "weather" } })
    .finalMessage()
).content
  .filter((block) => block.type === "tool_use")
  .map((call) => [call.name, call.input]);

const parsed = await client.messages.parse({ ...ask, output_config: { format: zodOutputFormat(City) } });
found.parsed = parsed.parsed_output;

found.thinking = text(await client.messages.create({ ...ask, max_tokens: 1200, thinking: { type: "enabled", budget_tokens: 1024 } }));

found.failure = await client.messages.create({ ...ask, model: "claude" }).catch((error) => [error.status, error.type]);

console.log(JSON.stringify(found));
