// What is said about an answer.

import { create } from "./dom.js";

const ENDS = { length: "cut at the limit", stopped: "stopped", lost: "lost before its end" };

// Returns whether there may be more of an answer.
export const isUnfinished = (turn) => Object.hasOwn(ENDS, turn.end);

export const factList = (facts) => showFacts(create("ul", { className: "quiet facts" }), facts);

export function showFacts(list, facts) {
  list.replaceChildren(...facts.map((fact) => create("li", {}, fact)));
  return list;
}

// Returns facts about an answer; without its end and the chat's size while it arrives.
export function factsOf({ usage, rate, firstMs, end }, isRunning) {
  const facts = [];
  if (usage?.completion) facts.push(`${usage.completion.toLocaleString()} token${usage.completion === 1 ? "" : "s"}`);
  if (!isRunning && usage?.total) facts.push(`${usage.total.toLocaleString()} in this chat`);
  if (rate) facts.push(`${rate.toFixed(rate < 100 ? 1 : 0)} tokens/s`);
  if (firstMs !== undefined) facts.push(`first after ${firstMs.toLocaleString()} ms`);
  if (usage?.cached) facts.push(`${usage.cached.toLocaleString()} from the cache`);
  if (!isRunning && Object.hasOwn(ENDS, end)) facts.push(ENDS[end]);
  return facts;
}
