// What is said about an answer, and about a conversation.

const ENDS = { length: "cut at the limit", stopped: "stopped", lost: "lost before its end" };

// Returns whether there may be more of an answer.
export const isUnfinished = (turn) => Object.hasOwn(ENDS, turn.end);

// Returns a line about an answer; without its end while it arrives.
export function facts(turn, isRunning) {
  const { usage, rate, firstMs } = turn;
  const facts = [];
  if (usage?.completion) facts.push(`${usage.completion} token${usage.completion === 1 ? "" : "s"}`);
  if (rate) facts.push(`${rate.toFixed(rate < 100 ? 1 : 0)} tokens/s`);
  if (firstMs !== undefined) facts.push(`first after ${firstMs} ms`);
  if (!isRunning && isUnfinished(turn)) facts.push(ENDS[turn.end]);
  return facts.join(" · ");
}

// Returns a line about a conversation: what its state has, and what the server did not have to read for the last answer.
export function chatFacts(turns) {
  const last = turns.findLast((turn) => turn.usage?.total);
  if (!last) return "";
  const { prompt, cached, total } = last.usage;
  const facts = [
    `${total.toLocaleString()} tokens in this chat`,
    `${cached.toLocaleString()} of the last prompt’s ${prompt.toLocaleString()} came from the cache`,
  ];
  if (last.firstMs !== undefined) facts.push(`first token after ${last.firstMs.toLocaleString()} ms`);
  return facts.join(" · ");
}
