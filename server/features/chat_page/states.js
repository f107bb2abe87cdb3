// The dialog with the saved states. A chat can go on from one, also on another server, to which a file brings it.

import { openChat, showError } from "./conversation.js";
import { $, button, create, focusMessage } from "./dom.js";
import { chatOfMessages, download, fileName } from "./files.js";
import { settingsForNew } from "./settings.js";
import { deleteState, exportState, importState, listStates, readState } from "./state_requests.js";
import { listChats, saveChat } from "./store.js";
import { newChat, shownTurns, title } from "./tree.js";
import { endUndo, keepUndo, offerUndo } from "./undo.js";

const UNDO_MS = 10_000; // until the server deletes a state

const deleting = new Set();

export function setUpStates() {
  $("open-states").addEventListener("click", openDialog);
  $("states").addEventListener("close", keepUndo);
}

function openDialog() {
  if ($("sidebar").matches(":modal")) $("sidebar").close();
  $("states").showModal();
  attempt(showStates);
}

async function attempt(action) {
  showProblem("");
  try { await action(); } catch (error) { showProblem(error.message); }
}

function showProblem(problem) {
  $("states-error").textContent = problem;
  $("states-error").hidden = !problem;
  if (!$("states").open) showError(problem);
}

async function showStates() {
  const { states, hasMore } = await listStates();
  const kept = states.filter(({ id }) => !deleting.has(id));
  $("states-list").replaceChildren(...kept.map(row));
  $("no-states").textContent = hasMore ? "These are the newest 100." : kept.length ? "" : "No saved states.";
}

function row(state) {
  const known = nameOf(state);
  const name = known ?? `State ${state.id.slice(-6)}`;
  const when = new Date(state.created * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  const size = `${state.tokens.toLocaleString()} tokens · ${Math.ceil(state.bytes / 1024).toLocaleString()} KiB · ${when}`;
  const tool = (text, action) => {
    const element = button(text, () => attempt(action), { className: "small" });
    element.setAttribute("aria-label", `${text} the state “${name}”`);
    return element;
  };
  return create("li", {}, create("span", { dir: "auto" }, name), create("span", { className: "quiet" }, size),
    create("div", { className: "tools" },
      tool("Open", async () => open(chatOfState(await readState(state.id), known, name))),
      tool("Download", async () => download(`${fileName(name)}.state`, await exportState(state.id))),
      tool("Delete", () => remove(state, name))));
}

// Returns the title of the chat that the state was saved from, or that continues it.
function nameOf({ id }) {
  const chat = listChats().find((each) => each.state?.id === id || each.turns.some((turn) => turn.state === id));
  return chat && title(chat);
}

function open(chat) {
  $("states").close();
  saveChat(chat);
  openChat(chat);
  focusMessage();
}

// Returns a chat that continues a state, with its messages if the state's tokens are those of a chat.
function chatOfState({ id, tokens, messages }, name, nameWithoutText = name) {
  const chat = chatOfMessages(messages) ?? newChat();
  const last = shownTurns(chat).at(-1);
  if (last) last.state = id;
  const isName = name && fileName(name) !== fileName(title(chat)); // rather than the beginning of the first message
  chat.title = last ? (isName ? name : "") : nameWithoutText;
  chat.state = { id, tokens, turn: last?.id ?? "" };
  chat.settings = { ...settingsForNew(), system: "", ...chat.settings };
  return chat;
}

// Returns the chat of a state's file, which is named after a chat and may have got a number by the browser.
export async function chatOfFile(file) {
  return chatOfState(await importState(file), file.name.replace(/( \(\d+\))?\.\w+$/, "").replaceAll("-", " "));
}

// Lets the server delete a state once it is too late to undo that.
function remove({ id }, name) {
  deleting.add(id);
  const timer = setTimeout(() => { endUndo(); attempt(() => deleteState(id)); }, UNDO_MS);
  offerUndo(`Deleted the state “${name}”`, () => {
    clearTimeout(timer);
    deleting.delete(id);
    attempt(showStates);
  });
  return showStates();
}
