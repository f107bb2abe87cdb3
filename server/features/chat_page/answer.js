// An answer while it arrives in chunks. Its turn says at any time what has come:
//
//   content   the text
//   end       "stop", or why there may be more: "length", "stopped" by the user, "lost" with its connection or page
//   request   id of the response
//   usage     { prompt, cached, completion, total }, in tokens
//   firstMs   milliseconds until the first token
//   rate      tokens per second

import { create } from "./dom.js";
import { facts } from "./facts.js";
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
    this.body = create("div", { className: "body" });
    this.view = new MarkdownView(this.body);
    this.note = create("div", { className: "quiet note" });
    this.element = answerElement(this.body, this.note);
    this.element.classList.add("running");
    this.element.setAttribute("aria-busy", "true");
    if (turn.content) this.view.show(turn.content);
  }

  take(chunk) {
    const choice = chunk.choices[0];
    if (chunk.id) this.turn.request = chunk.id;
    if (choice?.delta.content) this.turn.content += choice.delta.content;
    if (choice?.finish_reason) this.turn.end = choice.finish_reason;
    if (chunk.usage) this.count(chunk.usage);
    this.timer ??= setTimeout(() => { this.timer = undefined; this.draw(); }, Math.max(16, 4 * this.drawingTime));
  }

  count({ prompt_tokens: prompt, completion_tokens: tokens, prompt_tokens_details: details }) {
    const cached = details?.cached_tokens ?? 0;
    this.turn.usage = { prompt, cached, completion: this.tokensBefore + tokens, total: prompt + tokens };
    if (!tokens || tokens === this.tokens) return;
    const now = performance.now();
    this.first ??= { at: now, tokens };
    this.turn.firstMs = Math.round(this.first.at - this.asked);
    const seconds = (now - this.first.at) / 1000; // a short answer comes in one read, which has no rate
    if (seconds > 0.02) this.turn.rate = (tokens - this.first.tokens) / seconds;
    this.tokens = tokens;
  }

  // Shows how many prompt tokens have been read, before the first token comes.
  showReading(numRead) {
    const total = this.turn.usage?.prompt;
    if (this.first || !total) return;
    const read = Math.min(numRead, total);
    this.note.textContent = `Reading the prompt: ${read.toLocaleString()} of ${total.toLocaleString()} tokens`;
  }

  draw() {
    const began = performance.now();
    const follow = isAtEnd();
    this.view.show(this.turn.content);
    if (this.first) this.note.textContent = facts(this.turn, true);
    if (follow) scrollToEnd();
    else showWayToEnd();
    this.drawingTime = performance.now() - began;
  }

  // Shows the end; the tools of an answer follow.
  end() {
    clearTimeout(this.timer);
    this.draw();
    this.note.textContent = facts(this.turn);
    this.element.classList.remove("running");
    this.element.removeAttribute("aria-busy");
  }
}
