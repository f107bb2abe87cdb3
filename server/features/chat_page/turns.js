// The messages of a conversation as elements, and an answer while it arrives.

import { $, button, copyButton, create } from "./dom.js";
import { MarkdownView } from "./markdown.js";

export function userTurn(text, { onEdit }) {
  const turn = turnOf("user", "You", create("p", { className: "plain" }, text));
  const edit = button("Edit", () => editTurn(turn, text, onEdit), { className: "small idle-only" });
  edit.setAttribute("aria-label", "Edit message");
  turn.append(toolbar(copyButton(() => text, "Copy message"), edit));
  return turn;
}

// Replaces a message by a box to change it in.
export function editTurn(turn, text, onEdit) {
  const shown = [...turn.childNodes];
  const area = create("textarea", { value: text, rows: Math.min(8, text.split("\n").length + 1) });
  area.setAttribute("aria-label", "Edited message");
  const cancel = () => {
    turn.classList.remove("editing");
    turn.replaceChildren(...shown);
    turn.querySelector(".idle-only").focus();
  };
  const send = () => { if (area.value.trim()) onEdit(area.value.trim()); };
  area.addEventListener("keydown", (event) => {
    if (isSendKey(event)) { event.preventDefault(); send(); }
    if (event.key === "Escape") { event.stopPropagation(); cancel(); }
  });
  turn.classList.add("editing");
  turn.replaceChildren(area, create("div", { className: "end" },
    button("Cancel", cancel), button("Send", send, { className: "main" })));
  area.focus();
}

export function isSendKey(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing;
}

export function answerTurn(text, { onRegenerate }) {
  const body = create("div", { className: "body" });
  new MarkdownView(body).show(text);
  const turn = turnOf("assistant", "Answer", body, create("div", { className: "quiet note" }));
  addAnswerTools(turn, text, onRegenerate);
  return turn;
}

function addAnswerTools(turn, text, onRegenerate) {
  const regenerate = button("Regenerate", onRegenerate, { className: "small idle-only last-only" });
  turn.append(toolbar(copyButton(() => text, "Copy answer"), regenerate));
}

function turnOf(role, label, ...children) {
  const turn = create("article", { className: `turn ${role}` }, ...children);
  turn.setAttribute("aria-label", label);
  return turn;
}

function toolbar(...buttons) {
  return create("div", { className: "tools" }, ...buttons);
}

export function scrollToEnd() {
  $("scroll").scrollTop = $("scroll").scrollHeight;
}

function isAtEnd() {
  const scroll = $("scroll");
  return scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
}

// An answer that arrives in chunks. It is drawn a few times a second at most, so that drawing takes a fifth of the time.
export class RunningAnswer {
  constructor() {
    this.text = "";
    this.asked = performance.now();
    this.drawingTime = 0;
    this.body = create("div", { className: "body" });
    this.view = new MarkdownView(this.body);
    this.note = create("div", { className: "quiet note" });
    this.turn = turnOf("assistant", "Answer", this.body, this.note);
    this.turn.classList.add("running");
    this.turn.setAttribute("aria-busy", "true");
  }

  take(chunk) {
    const choice = chunk.choices[0];
    if (choice?.delta.content) this.text += choice.delta.content;
    if (choice?.finish_reason) this.reason = choice.finish_reason;
    const tokens = chunk.usage?.completion_tokens ?? 0;
    if (tokens && !this.first) { this.first = performance.now(); this.inFirst = tokens; }
    if (tokens !== this.tokens) { this.tokens = tokens; this.last = performance.now(); }
    this.timer ??= setTimeout(() => { this.timer = undefined; this.draw(); }, Math.max(16, 4 * this.drawingTime));
  }

  draw(remarks = []) {
    const began = performance.now();
    const follow = isAtEnd();
    this.view.show(this.text);
    this.note.textContent = [...this.facts(), ...remarks].join(" · ");
    if (follow) scrollToEnd();
    this.drawingTime = performance.now() - began;
  }

  facts() {
    if (!this.first) return [];
    const seconds = (this.last - this.first) / 1000;  // a short answer comes in one read, which has no rate
    const facts = [`${this.tokens} token${this.tokens === 1 ? "" : "s"}`];
    if (seconds > 0.02) facts.push(`${rate((this.tokens - this.inFirst) / seconds)} tokens/s`);
    facts.push(`first after ${Math.round(this.first - this.asked)} ms`);
    if (this.reason === "length") facts.push("cut at the limit");
    return facts;
  }

  end(remarks, onRegenerate) {
    clearTimeout(this.timer);
    this.turn.classList.remove("running");
    this.turn.removeAttribute("aria-busy");
    addAnswerTools(this.turn, this.text, onRegenerate);
    this.draw(remarks);
  }
}

function rate(perSecond) {
  return perSecond.toFixed(perSecond < 100 ? 1 : 0);
}
