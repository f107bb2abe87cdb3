// HTTP requests to the server that the page came from.

import { apiKey } from "./settings.js";

const UNREACHABLE = "The server can't be reached; try again.";
const LOST = "The connection to the server was lost; try again.";
const NO_KEY = "The server wants an API key: give it under Settings.";
const WRONG_KEY = "The server refused the API key: change it under Settings.";

export async function request(path, options = {}) {
  const key = apiKey();
  const own = { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
  const headers = { ...own, ...options.headers };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    throw explained(error, UNREACHABLE);
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const unauthorized = response.status === 401 ? (key ? WRONG_KEY : NO_KEY) : undefined;
  const message = unauthorized ?? body?.error?.message ?? `The server answered with status ${response.status}.`;
  const error = new Error(message);
  error.status = response.status;
  throw error;
}

// Yields the chunks of a streamed chat completion.
export async function* streamChat(fields, signal) {
  const body = { ...fields, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };
  const response = await request("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => { throw explained(error, LOST); });
    if (done) throw new Error(LOST);
    const events = (held + value).split(/\r?\n\r?\n/);
    held = events.pop();
    for (const event of events) {
      if (event === "data: [DONE]") return;
      if (!event.startsWith("data: ")) continue;
      const chunk = JSON.parse(event.slice(6));
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}

// Browsers say "Failed to fetch" or "network error"; a stop by the user stays what it is.
function explained(error, message) {
  if (error.name === "AbortError") return error;
  const other = new Error(message, { cause: error });
  other.isOffline = true;
  return other;
}
