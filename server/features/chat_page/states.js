// The dialog with the saved states. A chat can go on from one, also on another server, to which a file brings it.

import { openChat, showError } from "./conversation.js";
import { $, button, create } from "./dom.js";
import { download, fileName } from "./files.js";
import { settingsForNew } from "./settings.js";
import { deleteState, exportState, importState, listStates } from "./state_requests.js";
import { listChats } from "./store.js";
import { newChat, title } from "./tree.js";
import { keepUndo, offerUndo } from "./undo.js";

const UNDO_MS = 10_000; // until the server deletes a state

const deleting = new Set();

export function setUpStates() {
  $("open-states").addEventListener("click", openDialog);
  $("states").addEventListener("close", keepUndo);
  $("open-state-file").addEventListener("click", () => $("state-file").click());
  $("state-file").addEventListener("change", () => attempt(openFile));
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
  const name = nameOf(state);
  const when = new Date(state.created * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  const size = `${state.tokens.toLocaleString()} tokens · ${Math.ceil(state.bytes / 1024).toLocaleString()} KiB · ${when}`;
  const tool = (text, action) => {
    const element = button(text, () => attempt(action), { className: "small" });
    element.setAttribute("aria-label", `${text} the state “${name}”`);
    return element;
  };
  return create("li", {}, create("span", { dir: "auto" }, name), create("span", { className: "quiet" }, size),
    create("div", { className: "tools" },
      tool("Open", () => openState(state, name)),
      tool("Download", async () => download(`${fileName(name)}.state`, await exportState(state.id))),
      tool("Delete", () => remove(state, name))));
}

// Returns the title of the chat that the state was saved from, or that continues it.
function nameOf({ id }) {
  const chat = listChats().find((each) => each.state?.id === id || each.turns.some((turn) => turn.state === id));
  return chat ? title(chat) : `State ${id.slice(-6)}`;
}

function openState({ id, tokens }, name) {
  $("states").close();
  openChat(newChat({ title: name, state: { id, tokens }, settings: { ...settingsForNew(), system: "" } }));
  $("text").focus();
}

async function openFile() {
  const [file] = $("state-file").files;
  const state = await importState(file);
  $("state-file").value = "";
  openState(state, file.name.replace(/\.state$/, ""));
}

// Lets the server delete a state once it is too late to undo that.
function remove({ id }, name) {
  deleting.add(id);
  const timer = setTimeout(() => { hide(); attempt(() => deleteState(id)); }, UNDO_MS);
  const hide = offerUndo(`Deleted the state “${name}”`, () => {
    clearTimeout(timer);
    deleting.delete(id);
    attempt(showStates);
  });
  return showStates();
}
