// LangChain.js over chat completions and over responses.
import { AIMessage, HumanMessage, SystemMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI } from "@langchain/openai";
import { z } from "zod";

const model = new ChatOpenAI({
  model: "demo",
  apiKey: process.env.API_KEY,
  configuration: { baseURL: process.env.BASE_URL },
  temperature: 0,
  maxTokens: 200,
  maxRetries: 0,
  useResponsesApi: process.env.RESPONSES === "1",
});
const City = z.object({ name: z.string().max(20), country: z.enum(["Spain", "France"]), isCapital: z.boolean() });
const question = "What is the capital of Spain?";
const found = {};

const whole = await model.invoke([new SystemMessage("Answer briefly."), new HumanMessage(question)]);
found.chat = whole.text;
found.usage = whole.usage_metadata;

found.stream = "";
for await (const chunk of await model.stream(question)) found.stream += chunk.text;

found.system = (await model.invoke([new SystemMessage(question)])).text;

for (const method of ["jsonSchema", "functionCalling"])
  found[method] = await model.withStructuredOutput(City, { method, name: "city" }).invoke("Tell me of Madrid.");

const weather = tool(async ({ city }) => `It is sunny in ${city}.`, {
  name: "weather",
  description: "Returns the weather in a city",
  schema: z.object({ city: z.enum(["Madrid", "Rome"]) }),
});
const asked = new HumanMessage("How is the weather in Rome?");
const called = await model.bindTools([weather], { tool_choice: "weather" }).invoke([asked]);
found.results = await Promise.all(called.tool_calls.map(async (call) => (await weather.invoke(call)).content));
const results = called.tool_calls.map(
  (call, index) => new ToolMessage({ tool_call_id: call.id, content: found.results[index] }),
);
found.afterTool = (await model.invoke([asked, called, ...results])).text;

found.turns = (
  await model.invoke([new HumanMessage("My name is Anna."), new AIMessage("Hello."), new HumanMessage("What is my name?")])
).text;

console.log(JSON.stringify(found));
