// The turns of a conversation as elements.
//
// `actions` has what their tools do: edit(turn, text), answer(turn), regenerate(turn), proceed(turn), choose(turn),
// fork(turn), pick(turn), save(turn), download(turn).

import { button, copyButton, create, tool } from "./dom.js";
import { factList, factsOf, isUnfinished } from "./facts.js";
import { foldable } from "./fold.js";
import { MarkdownView } from "./markdown.js";
import { versions } from "./tree.js";

export function turnElement(chat, turn, actions) {
  return turn.role === "user" ? userElement(chat, turn, actions) : oldAnswer(chat, turn, actions);
}

function userElement(chat, turn, actions) {
  const element = elementOf("user", "You", ...foldable(turn.content));
  element.dataset.turn = turn.id;
  const edit = idleTool("edit", "Edit", () => editTurn(element, turn, actions), "Edit message");
  const again = idleTool("again", "Try again", () => actions.answer(turn), "Try again to get an answer", "last-only");
  element.append(create("div", { className: "foot" }, toolbar(copyButton(() => turn.content, "Copy message"), edit, again,
    forkTool(turn, actions), ...versionTools(chat, turn, actions))));
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

export function oldAnswer(chat, turn, actions, isBeside = false) {
  const body = create("div", { className: "body" });
  new MarkdownView(body).show(turn.content);
  const element = answerElement(body, factList(factsOf(turn)));
  addAnswerTools(element, chat, turn, actions, isBeside);
  return element;
}

export function answerElement(body, facts) {
  return elementOf("assistant", "Answer", body, create("div", { className: "foot" }, facts));
}

// Returns answers as one element: side by side if there are several.
export function besideElement(elements) {
  return elements.length === 1 ? elements[0] : create("div", { className: "beside" }, ...elements);
}

export function addAnswerTools(element, chat, turn, actions, isBeside) {
  element.dataset.turn = turn.id;
  const copy = copyButton(() => turn.content, "Copy answer");
  const tools = isBeside
    ? [button("Go on with this", () => actions.pick(turn), { className: "pick idle-only" }), copy]
    : [copy, ...answerTools(chat, turn, actions)];
  element.querySelector(".foot").prepend(toolbar(...tools));
}

function answerTools(chat, turn, actions) {
  const tools = [
    idleTool("again", "Regenerate", () => actions.regenerate(turn), "Regenerate answer"),
    idleTool("three", "Three more", () => actions.regenerate(turn, 3), "Three more answers, side by side"),
  ];
  const proceed = () => actions.proceed(turn);
  if (isUnfinished(turn)) tools.push(idleTool("continue", "Continue", proceed, "Continue answer", "last-only"));
  return [...tools, forkTool(turn, actions), ...stateTools(turn, actions), ...versionTools(chat, turn, actions)];
}

function forkTool(turn, actions) {
  return idleTool("fork", "Fork", () => actions.fork(turn), "Fork from here, into a new chat");
}

// Returns what can be done with the server's state after an answer.
function stateTools(turn, actions) {
  const download = () => actions.download(turn);
  const save = () => actions.save(turn);
  if (turn.state) return [idleTool("download", "Download", download, "Download state of this answer", "states-only")];
  return turn.request ? [idleTool("save", "Save state", save, "Save state after this answer", "states-only")] : [];
}

// Returns `‹ 2/3 ›` for a turn that has alternatives.
function versionTools(chat, turn, actions) {
  const all = versions(chat, turn);
  if (all.length < 2) return [];
  const place = all.indexOf(turn);
  const step = (text, by, label) => {
    const element = button(text, () => actions.choose(all[place + by], label), { className: "small version idle-only" });
    element.setAttribute("aria-label", label);
    element.disabled = !all[place + by];
    return element;
  };
  const count = create("span", { className: "quiet count" }, `${place + 1}/${all.length}`);
  return [step("‹", -1, "Previous version"), count, step("›", 1, "Next version")];
}

const idleTool = (icon, name, onClick, label, kind = "") => tool(icon, name, onClick, label, `idle-only ${kind}`);

function elementOf(role, label, ...children) {
  const element = create("article", { className: `turn ${role}` }, ...children);
  element.setAttribute("aria-label", label);
  return element;
}

function toolbar(...buttons) {
  return create("div", { className: "tools" }, ...buttons);
}
