// An answer while it arrives in chunks. Its turn says at any time what has come:
//
//   content   the text
//   end       "stop", or why there may be more: "length", "stopped" by the user, "lost" with its connection or page
//   request   id of the response, of which the answer is the choice `index`
//   usage     { prompt, cached, completion, total }, in tokens
//   firstMs   milliseconds until the first token
//   rate      tokens per second

import { create } from "./dom.js";
import { factList, factsOf, showFacts } from "./facts.js";
import { MarkdownView } from "./markdown.js";
import { isAtEnd, scrollToEnd, showWayToEnd } from "./scroll.js";
import { answerElement } from "./turns.js";

// It is drawn a few times a second at most, so that drawing takes a fifth of the time.
export class RunningAnswer {
  constructor(turn) {
    this.turn = turn;
    this.asked = performance.now();
    this.drawingTime = 0;
    this.tokensBefore = turn.usage?.completion ?? 0; // of an answer that is continued
    this.tokens = 0;
    this.body = create("div", { className: "body" });
    this.view = new MarkdownView(this.body);
    this.facts = factList([]);
    this.element = answerElement(this.body, this.facts);
    this.element.classList.add("running");
    this.element.setAttribute("aria-busy", "true");
    if (turn.content) this.view.show(turn.content);
  }

  // Takes a chunk with a choice of this answer, if any, and with `newTokens` tokens.
  take(chunk, newTokens) {
    const choice = chunk.choices[0];
    if (chunk.id) this.turn.request = chunk.id;
    if (choice?.index) this.turn.index = choice.index;
    if (choice?.delta.content) this.turn.content += choice.delta.content;
    if (choice?.finish_reason) this.turn.end = choice.finish_reason;
    if (chunk.usage) this.count(chunk.usage, newTokens);
    this.timer ??= setTimeout(() => { this.timer = undefined; this.draw(); }, Math.max(16, 4 * this.drawingTime));
  }

  count({ prompt_tokens: prompt, prompt_tokens_details: details }, newTokens) {
    const tokens = this.tokens += newTokens;
    const cached = details?.cached_tokens ?? 0;
    this.turn.usage = { prompt, cached, completion: this.tokensBefore + tokens, total: prompt + tokens };
    if (!newTokens) return;
    const now = performance.now();
    this.first ??= { at: now, tokens };
    this.turn.firstMs = Math.round(this.first.at - this.asked);
    const seconds = (now - this.first.at) / 1000; // a short answer comes in one read, which has no rate
    if (seconds > 0.02) this.turn.rate = (tokens - this.first.tokens) / seconds;
  }

  // Shows how many prompt tokens have been read, before the first token comes.
  showReading(numRead) {
    const total = this.turn.usage?.prompt;
    if (this.first || !total) return;
    const read = Math.min(numRead, total);
    showFacts(this.facts, [`Reading the prompt: ${read.toLocaleString()} of ${total.toLocaleString()} tokens`]);
  }

  draw() {
    const began = performance.now();
    const follow = isAtEnd();
    this.view.show(this.turn.content);
    if (this.first) showFacts(this.facts, factsOf(this.turn, true));
    if (follow) scrollToEnd();
    else showWayToEnd();
    this.drawingTime = performance.now() - began;
  }

  // Shows the end; the tools of an answer follow.
  end() {
    clearTimeout(this.timer);
    this.draw();
    showFacts(this.facts, factsOf(this.turn));
    this.element.classList.remove("running");
    this.element.removeAttribute("aria-busy");
  }
}
