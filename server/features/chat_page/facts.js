// What is said about an answer.

import { $, button, create } from "./dom.js";

const ENDS = { length: "cut at the limit", stopped: "stopped", lost: "lost before its end" };

const WINDOW = 2048; // tokens of RecurrentGemma's attention

// Returns whether there may be more of an answer.
export const isUnfinished = (turn) => Object.hasOwn(ENDS, turn.end);

export const factList = (facts) => showFacts(create("ul", { className: "quiet facts" }), facts);

export function showFacts(list, facts) {
  list.replaceChildren(...facts.map((fact) => create("li", {}, fact)));
  return list;
}

// Returns how much of a prompt was read, as a button that shows what that means.
function readOf({ prompt, cached }) {
  const read = Math.max(prompt - cached, 0).toLocaleString();
  const text = `${cached.toLocaleString()} tokens restored from a state, ${read} read`;
  return button(text, () => $("about").showModal(), { className: "link" });
}

// Returns what a saved state takes, without the ids of its tokens, 4 bytes each. It has the last tokens of the attention's window
// whole, so that it grows until then.
function savedOf({ tokens, bytes }) {
  const size = Math.ceil((bytes - 4 * tokens) / 1024).toLocaleString();
  const growth = tokens < WINDOW ? `growing up to ${WINDOW.toLocaleString()} tokens only` : "the same at any length";
  return `Saved: ${size} KiB, ${growth}, under “Saved states”`;
}

// Returns facts about an answer; without its end and the chat's size while it arrives.
export function factsOf({ usage, rate, firstMs, end, saved }, isRunning) {
  const facts = [];
  if (usage?.completion) facts.push(`${usage.completion.toLocaleString()} token${usage.completion === 1 ? "" : "s"}`);
  if (!isRunning && usage?.total) facts.push(`${usage.total.toLocaleString()} in this chat`);
  if (rate) facts.push(`${rate.toFixed(rate < 100 ? 1 : 0)} tokens/s`);
  if (firstMs !== undefined) facts.push(`first after ${firstMs.toLocaleString()} ms`);
  if (!isRunning && usage?.prompt) facts.push(readOf(usage));
  if (!isRunning && saved) facts.push(savedOf(saved));
  if (!isRunning && Object.hasOwn(ENDS, end)) facts.push(ENDS[end]);
  return facts;
}
