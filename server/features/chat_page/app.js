// The page: what its controls do.

import { chatAt, keepAddress } from "./address.js";
import { ask, currentChat, editLast, isRunning, isUndecided, openChat, showError, showReading, stop, whenChanged } from "./conversation.js";
import { $, focusMessage, tool } from "./dom.js";
import { setUpKeys } from "./keys.js";
import { request } from "./server.js";
import { askForKey, loadKey, settingsForNew, showKeyProblem, showTemperature, storeKey, takeSettings } from "./settings.js";
import { setUpScroll } from "./scroll.js";
import { searchChats, setUpSidebar, showChats } from "./sidebar.js";
import { findStates } from "./state_requests.js";
import { setUpStates } from "./states.js";
import { showLoad, showModel } from "./status.js";
import { findChat, keepDraft, openStore, openedChat, saveChat } from "./store.js";
import { newChat } from "./tree.js";
import { isSendKey } from "./turns.js";

let isBehind = false; // another tab has changed the conversation that is shown

// Sends the text; without one, asks for several answers to the last message.
function send(count = 1) {
  const text = $("text").value.trim();
  if (!(text || count > 1)) return;
  if (isRunning()) return showError("An answer is still coming: stop it, or send the message when it has ended.");
  if (text && isUndecided()) return showError("Pick the answer to go on with first.");
  setText("");
  ask(text, count);
}

function setText(text) {
  keepDraft(currentChat(), text);
  $("text").value = text;
  fitText();
}

function fitText() {
  $("text").style.height = "auto";
  $("text").style.height = `${$("text").scrollHeight}px`;
}

function open(chat) {
  openChat(chat);
  focusMessage();
}

const openFresh = () => open(newChat({ settings: settingsForNew() }));

// Shows the chat of the address: the user has gone back to it, or changed it.
function openAddress() {
  const isUnknown = location.hash.length > 2 && !chatAt(location.hash);
  const chat = chatAt(location.hash) ?? newChat({ settings: settingsForNew() });
  keepAddress(chat);
  openChat(chat);
  if (isUnknown) showError("This chat is not in this browser.");
}

// Another tab has changed or deleted a conversation.
function followOtherTab(id) {
  isBehind ||= id === currentChat().id;
  showChanges();
}

function showChanges() {
  showChats();
  if (!isBehind || isRunning() || document.querySelector(".editing")) return;
  isBehind = false;
  const chat = findChat(currentChat().id);
  if (chat) openChat(chat);
}

function showServer() {
  showModel();
  watch();
  findStates();
}

// Closes the dialog unless the server refuses the key in it.
async function closeSettings() {
  try {
    await request("v1/models");
  } catch (error) {
    if (error.status === 401) return askForKey();
  }
  $("settings").close();
}

function useSettings() {
  storeKey();
  takeSettings(currentChat());
  if (findChat(currentChat().id)) saveChat(currentChat());
  showServer();
}

async function watch() {
  showReading(await showLoad());
}

function listen() {
  addEventListener("popstate", openAddress);
  $("ask").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  $("text").addEventListener("input", () => { keepDraft(currentChat(), $("text").value); fitText(); });
  $("text").addEventListener("keydown", (event) => {
    if (isSendKey(event)) { event.preventDefault(); send(); }
  });
  $("send").before(tool("three", "Three answers", () => send(3), "Three answers, side by side", "idle-only"));
  $("stop").addEventListener("click", stop);
  $("fresh").addEventListener("click", openFresh);
  $("load").addEventListener("click", () => $("about").showModal());
  $("open-settings").addEventListener("click", () => { showKeyProblem(""); $("settings").showModal(); });
  $("temperature").addEventListener("input", showTemperature);
  $("settings-form").addEventListener("submit", (event) => { event.preventDefault(); closeSettings(); });
  $("settings").addEventListener("close", useSettings);
  $("welcome").addEventListener("click", (event) => {
    if (!event.target.matches("li button") || isRunning()) return;
    ask(event.target.textContent);
  });
}

await openStore(followOtherTab, showError);
loadKey();
listen();
setUpScroll();
setUpSidebar();
setUpStates();
setUpKeys({ stop, edit: editLast, fresh: openFresh, search: searchChats, write: () => $("text").focus() });
whenChanged(showChanges);
if (!location.hash && openedChat()) openChat(openedChat());
else openAddress();
focusMessage();
showServer();
setInterval(watch, 1000);
