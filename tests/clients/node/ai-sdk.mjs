// The Vercel AI SDK over each provider that takes an address.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, isStepCount, Output, streamText, tool } from "ai";
import { z } from "zod";

globalThis.AI_SDK_LOG_WARNINGS = false;
const { BASE_URL: baseURL, API_KEY: apiKey, PROVIDER } = process.env;
const model = {
  "openai-compatible": () =>
    createOpenAICompatible({ name: "roost", baseURL, apiKey, supportsStructuredOutputs: true })("demo"),
  "openai-chat": () => createOpenAI({ baseURL, apiKey }).chat("demo"),
  "openai-responses": () => createOpenAI({ baseURL, apiKey })("demo"),
  anthropic: () => createAnthropic({ baseURL, apiKey })("demo"),
}[PROVIDER]();
const City = z.object({ name: z.string().max(20), country: z.enum(["Spain", "France"]), isCapital: z.boolean() });
const ask = { model, maxOutputTokens: 200, temperature: 0, maxRetries: 0 };
const prompt = "What is the capital of Spain?";
const found = {};

const whole = await generateText({ ...ask, system: "Answer briefly.", prompt });
found.chat = whole.text;
found.usage = whole.usage;

found.stream = "";
for await (const part of streamText({ ...ask, prompt }).textStream) found.stream += part;

found.turns = (
  await generateText({
    ...ask,
    messages: [
      { role: "user", content: "My name is Anna." },
      { role: "assistant", content: "Hello, Anna." },
      { role: "user", content: "What is my name?" },
    ],
  })
).text;

found.object = (await generateText({ ...ask, prompt: "Tell me of Madrid.", output: Output.object({ schema: City }) })).output;

const streamed = streamText({ ...ask, prompt: "Tell me of Madrid.", output: Output.object({ schema: City }) });
for await (const part of streamed.partialOutputStream) found.streamedObject = part;

found.choice = (await generateText({ ...ask, prompt, output: Output.choice({ options: ["Madrid", "Rome"] }) })).output;

const weather = tool({
  description: "Returns the weather in a city",
  inputSchema: z.object({ city: z.enum(["Madrid", "Rome"]) }),
  execute: async ({ city }) => `It is sunny in ${city}.`,
});
const loop = {
  ...ask,
  prompt: "How is the weather in Rome?",
  tools: { weather },
  stopWhen: isStepCount(2),
  prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
};
const run = await generateText(loop);
found.results = run.steps[0].toolResults.map((result) => result.output);
found.afterTool = run.text;

const streamedRun = streamText(loop);
found.streamedAfterTool = await streamedRun.text;
found.streamedResults = (await streamedRun.steps)[0].toolResults.map((result) => result.output);

console.log(JSON.stringify(found));
