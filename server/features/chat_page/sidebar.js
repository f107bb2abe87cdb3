// The list of conversations: beside the one that is shown, or above it on a narrow screen.

import { currentChat, openChat, showError } from "./conversation.js";
import { $, button, create, focusMessage } from "./dom.js";
import { chatsOf, downloadJson, downloadMarkdown } from "./files.js";
import { settingsForNew } from "./settings.js";
import { chatOfFile } from "./states.js";
import { deleteChat, findChat, listChats, restoreChat, saveChat } from "./store.js";
import { newChat, textsOf, title } from "./tree.js";
import { keepUndo, offerUndo } from "./undo.js";

const CLOSED = "roost-sidebar-closed";
const wide = matchMedia("(min-width: 60rem)");

export function setUpSidebar() {
  $("open-sidebar").addEventListener("click", () => ($("sidebar").open ? close() : open()));
  $("close-sidebar").addEventListener("click", close);
  $("sidebar").addEventListener("close", () => { keepUndo(); showOpen(); });
  $("search").addEventListener("input", showChats);
  $("import").addEventListener("click", () => $("import-files").click());
  $("import-files").addEventListener("change", () => importFiles($("import-files").files));
  addEventListener("dragover", (event) => showDrop(event, event.dataTransfer.types.includes("Files")));
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) showDrop(event, false); });
  addEventListener("drop", (event) => { if (showDrop(event, event.dataTransfer.files.length)) importFiles(event.dataTransfer.files); });
  $("export-all").addEventListener("click", () => downloadJson(listChats(), "chats"));
  $("delete-all").addEventListener("click", () => remove(listChats()));
  wide.addEventListener("change", place);
  place();
}

// Opens the list on wide screens, unless the user has closed it.
function place() {
  $("sidebar").close();
  if (wide.matches && !isClosedForGood()) open();
}

function open() {
  if (wide.matches) showBeside();
  else $("sidebar").showModal();
  showOpen();
  showChats();
}

export function searchChats() {
  if (!$("sidebar").open) open();
  $("search").focus();
}

function showBeside() {
  const focused = document.activeElement; // show() would take it
  $("sidebar").show();
  focused.focus();
  remember(false);
}

function close() {
  if (wide.matches) remember(true);
  $("sidebar").close();
}

function showOpen() {
  $("open-sidebar").setAttribute("aria-expanded", $("sidebar").open);
}

function isClosedForGood() {
  try { return Boolean(localStorage.getItem(CLOSED)); } catch { return false; }
}

function remember(isClosed) {
  try {
    if (isClosed) localStorage.setItem(CLOSED, "1");
    else localStorage.removeItem(CLOSED);
  } catch { /* forbidden */ }
}

// --- the list

export function showChats() {
  if (!$("sidebar").open || $("chats").querySelector(".name")) return; // not while a name is changed
  const all = listChats();
  const query = $("search").value.trim().toLowerCase();
  const found = query ? all.filter((chat) => title(chat).toLowerCase().includes(query) || excerpt(chat, query)) : all;
  $("chats").replaceChildren(...found.map((chat) => row(chat, query)));
  $("no-chats").textContent = found.length ? "" : query ? "No chat has these words." : "No chats yet.";
  for (const id of ["export-all", "delete-all"]) $(id).hidden = all.length === 0;
}

// Returns the text around the first place of a query in a conversation's messages.
function excerpt(chat, query) {
  for (const { content } of chat.turns) {
    const at = content.toLowerCase().indexOf(query);
    if (at >= 0) return `…${content.slice(Math.max(0, at - 20), at + 60)}…`;
  }
  return "";
}

function row(chat, query) {
  const when = new Date(chat.updated).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  const show = button("", () => choose(chat), { className: "chat" });
  show.append(create("span", { dir: "auto" }, title(chat)),
    create("span", { className: "quiet", dir: "auto" }, (query && excerpt(chat, query)) || when));
  if (chat.id === currentChat().id) show.setAttribute("aria-current", "true");
  const menu = create("div", { className: "menu", hidden: true },
    button("Rename", () => rename(chat, show)), button("Markdown", () => downloadMarkdown(chat)),
    button("JSON", () => downloadJson([chat])), button("Delete", () => remove([chat])));
  const more = button("⋯", () => toggle(menu, more), { className: "more" });
  more.setAttribute("aria-label", `More for “${title(chat)}”`);
  more.setAttribute("aria-expanded", "false");
  return create("li", {}, show, more, menu);
}

function toggle(menu, more) {
  const isOpening = menu.hidden;
  for (const other of document.querySelectorAll("#chats .menu")) other.hidden = true;
  for (const other of document.querySelectorAll("#chats .more")) other.setAttribute("aria-expanded", "false");
  menu.hidden = !isOpening;
  more.setAttribute("aria-expanded", isOpening);
}

function choose(chat) {
  if ($("sidebar").matches(":modal")) $("sidebar").close();
  if (chat.id !== currentChat().id) openChat(chat);
  focusMessage();
}

// --- changes

function rename(chat, show) {
  const input = create("input", { value: title(chat), className: "name", maxLength: 200 });
  input.setAttribute("aria-label", "New name");
  const end = (isKept) => {
    input.onblur = null;
    input.remove();
    if (isKept && input.value.trim() !== title(chat)) setTitle(chat, input.value.trim());
    showChats();
  };
  input.onblur = () => end(true);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") end(true);
    if (event.key === "Escape") { event.preventDefault(); event.stopPropagation(); end(false); }
  });
  show.replaceWith(input);
  input.select();
}

function setTitle(chat, name) {
  const before = chat.title;
  const set = (text) => { chat.title = text; saveChat(chat); showChats(); };
  set(name);
  offerUndo(`Renamed to “${title(chat)}”`, () => set(before));
}

function remove(chats) {
  const shown = chats.find((chat) => chat.id === currentChat().id);
  if (shown) openChat(newChat({ settings: settingsForNew() }));
  for (const chat of chats) deleteChat(chat);
  showChats();
  ($("chats").querySelector("button") ?? $("search")).focus();
  const what = chats.length === 1 ? `“${title(chats[0])}”` : `${chats.length} chats`;
  offerUndo(`Deleted ${what}`, () => {
    for (const chat of chats) restoreChat(chat);
    if (shown) openChat(shown);
    showChats();
  });
}

// Shows that files can be dropped, unless something else is dragged.
function showDrop(event, areFiles) {
  document.body.classList.toggle("dropping", event.type === "dragover" && Boolean(areFiles));
  if (areFiles) event.preventDefault();
  return areFiles;
}

// Imports chats that this page has written, or the files of states.
async function importFiles(files) {
  const chats = [];
  try {
    for (const file of files) {
      if (/\.(json|md)$/.test(file.name)) chats.push(...chatsOf(await file.text(), file.name));
      else chats.push(await chatOfFile(file));
    }
  } catch (error) {
    showError(error.message);
  }
  $("import-files").value = "";
  if (chats.length) takeChats(chats);
}

// Adds chats, unless their text is here already.
function takeChats(chats) {
  const byText = new Map(listChats().flatMap((chat) => textsOf(chat).map((text) => [text, chat])));
  const known = chats.map((chat) => byText.get(textsOf(chat)[0])).filter(Boolean);
  const fresh = chats.filter((chat) => !byText.has(textsOf(chat)[0]));
  for (const chat of fresh) saveChat(chat);
  openChat(fresh[0] ?? known[0]);
  showChats();
  if (known.length) showError(known.length === 1 ? `“${title(known[0])}” is already here.` : `${known.length} chats are already here.`);
  if (!fresh.length) return;
  offerUndo(fresh.length === 1 ? "Imported a chat" : `Imported ${fresh.length} chats`, () => {
    for (const chat of fresh) deleteChat(chat);
    if (!findChat(currentChat().id)) openChat(newChat({ settings: settingsForNew() }));
    showChats();
  });
}
