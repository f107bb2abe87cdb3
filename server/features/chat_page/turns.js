// The turns of a conversation as elements.
//
// `actions` has what their tools do: edit(turn, text), answer(turn), regenerate(turn), proceed(turn), choose(turn),
// fork(turn), save(turn), download(turn).

import { button, copyButton, create } from "./dom.js";
import { facts, isUnfinished } from "./facts.js";
import { foldable } from "./fold.js";
import { MarkdownView } from "./markdown.js";
import { versions } from "./tree.js";

export function turnElement(chat, turn, actions) {
  return turn.role === "user" ? userElement(chat, turn, actions) : oldAnswer(chat, turn, actions);
}

function userElement(chat, turn, actions) {
  const element = elementOf("user", "You", ...foldable(turn.content));
  element.dataset.turn = turn.id;
  const edit = tool("Edit", () => editTurn(element, turn, actions), "Edit message");
  const again = tool("Try again", () => actions.answer(turn), "Try again to get an answer", "last-only");
  element.append(toolbar(copyButton(() => turn.content, "Copy message"), edit, again, forkTool(turn, actions),
    ...versionTools(chat, turn, actions)));
  return element;
}

// Replaces a message by a box to change it in.
function editTurn(element, turn, actions) {
  const shown = [...element.childNodes];
  const area = create("textarea", { dir: "auto", value: turn.content, rows: Math.min(8, turn.content.split("\n").length + 1) });
  area.setAttribute("aria-label", "Edited message");
  const cancel = () => {
    element.classList.remove("editing");
    element.replaceChildren(...shown);
    element.querySelector(".idle-only").focus();
  };
  const send = () => { if (area.value.trim()) actions.edit(turn, area.value.trim()); };
  area.addEventListener("keydown", (event) => {
    if (isSendKey(event)) { event.preventDefault(); send(); }
    if (event.key === "Escape") { event.stopPropagation(); cancel(); }
  });
  element.classList.add("editing");
  element.replaceChildren(area, create("div", { className: "end" },
    button("Cancel", cancel), button("Send", send, { className: "main" })));
  area.focus();
}

export function isSendKey(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing;
}

function oldAnswer(chat, turn, actions) {
  const body = create("div", { className: "body" });
  new MarkdownView(body).show(turn.content);
  const element = answerElement(body, create("div", { className: "quiet note" }, facts(turn)));
  addAnswerTools(element, chat, turn, actions);
  return element;
}

export function answerElement(...children) {
  return elementOf("assistant", "Answer", ...children);
}

export function addAnswerTools(element, chat, turn, actions) {
  element.dataset.turn = turn.id;
  const tools = [
    copyButton(() => turn.content, "Copy answer"),
    tool("Regenerate", () => actions.regenerate(turn), "Regenerate answer"),
  ];
  if (isUnfinished(turn)) tools.push(tool("Continue", () => actions.proceed(turn), "Continue answer", "last-only"));
  tools.push(forkTool(turn, actions), ...stateTools(turn, actions), ...versionTools(chat, turn, actions));
  element.append(toolbar(...tools));
}

function forkTool(turn, actions) {
  return tool("Fork", () => actions.fork(turn), "Fork from here, into a new chat");
}

// Returns what can be done with the server's state after an answer.
function stateTools(turn, actions) {
  if (turn.state) return [tool("Download state", () => actions.download(turn), "Download state of this answer", "states-only")];
  return turn.request ? [tool("Save state", () => actions.save(turn), "Save state after this answer", "states-only")] : [];
}

// Returns `‹ 2/3 ›` for a turn that has alternatives.
function versionTools(chat, turn, actions) {
  const all = versions(chat, turn);
  if (all.length < 2) return [];
  const place = all.indexOf(turn);
  const step = (text, by, label) => {
    const element = tool(text, () => actions.choose(all[place + by], label), label, "version");
    element.disabled = !all[place + by];
    return element;
  };
  const count = create("span", { className: "quiet count" }, `${place + 1}/${all.length}`);
  return [step("‹", -1, "Previous version"), count, step("›", 1, "Next version")];
}

function tool(text, onClick, label, kind = "") {
  const element = button(text, onClick, { className: `small idle-only ${kind}` });
  element.setAttribute("aria-label", label);
  return element;
}

function elementOf(role, label, ...children) {
  const element = create("article", { className: `turn ${role}` }, ...children);
  element.setAttribute("aria-label", label);
  return element;
}

function toolbar(...buttons) {
  return create("div", { className: "tools" }, ...buttons);
}
