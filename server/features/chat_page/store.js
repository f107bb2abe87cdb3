// Conversations in the browser's database. All are in memory, too, so that lists and searches need not wait.

import { areMessages, chatOf } from "./tree.js";

const STORE = "chats";
const OPEN = "roost-open"; // id of the chat that this tab shows
const LEFT = "roost-left"; // changes that the database had no time for when the page was left
const OLD = "roost-chat-"; // prefix of conversations without branches, as earlier versions stored them

const chats = new Map();
const deleted = new Set();
const unwritten = new Set(); // ids of chats with changes that the database has not confirmed
const otherTabs = new BroadcastChannel("roost-chats");
let database = null;
let report = () => {};

// Reads all conversations. `onChange` gets the id of each that another tab changes, `onProblem` a line to show.
export async function openStore(onChange, onProblem) {
  report = onProblem;
  try {
    database = await result(openingDatabase());
    for (const chat of await result(database.transaction(STORE).objectStore(STORE).getAll())) chats.set(chat.id, chat);
  } catch { /* forbidden: conversations last as long as the page */ }
  if (database) otherTabs.onmessage = async ({ data: id }) => { await readAgain(id); onChange(id); };
  takeOldChats();
  takeLeftChanges();
}

function openingDatabase() {
  const opening = indexedDB.open("roost", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "id" });
  return opening;
}

function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function readAgain(id) {
  const stored = await result(database.transaction(STORE).objectStore(STORE).get(id));
  if (stored) chats.set(id, stored);
  else chats.delete(id);
}

export const findChat = (id) => chats.get(id);

// Returns all conversations, the newest first.
export const listChats = () => [...chats.values()].sort((one, other) => other.updated - one.updated);

export function saveChat(chat) {
  if (deleted.has(chat.id)) return;
  chats.set(chat.id, chat);
  write(chat.id, (store) => {
    const reading = store.get(chat.id);
    reading.onsuccess = () => { addTurnsOf(reading.result, chat); store.put(chat); };
  });
}

// Adds turns that another tab has stored.
function addTurnsOf(stored, chat) {
  const known = new Set(chat.turns.map((turn) => turn.id));
  chat.turns.push(...(stored?.turns ?? []).filter((turn) => !known.has(turn.id)));
}

export function deleteChat(chat) {
  deleted.add(chat.id);
  chats.delete(chat.id);
  write(chat.id, (store) => store.delete(chat.id));
}

export function restoreChat(chat) {
  deleted.delete(chat.id);
  saveChat(chat);
}

function write(id, change) {
  if (!database) return;
  unwritten.add(id);
  const transaction = database.transaction(STORE, "readwrite");
  change(transaction.objectStore(STORE));
  transaction.oncomplete = () => { unwritten.delete(id); otherTabs.postMessage(id); };
  transaction.onabort = () => report("The browser has no room for this conversation: export it, then delete others.");
}

export function rememberOpen(chat) {
  attempt(() => sessionStorage.setItem(OPEN, chat.id));
}

// Returns the conversation that this tab showed before it was reloaded, if there is one.
export const openedChat = () => findChat(attempt(() => sessionStorage.getItem(OPEN)));

// Keeps what the database may have no time for while the page is left.
export function leave() {
  if (!unwritten.size) return;
  const changes = [...unwritten].map((id) => ({ id, chat: findChat(id) }));
  attempt(() => localStorage.setItem(LEFT, JSON.stringify(changes)));
}

// Forgets what was left if the page comes back as it was.
export function comeBack() {
  attempt(() => localStorage.removeItem(LEFT));
}

function takeLeftChanges() {
  const changes = attempt(() => JSON.parse(localStorage.getItem(LEFT))) ?? [];
  comeBack();
  for (const { id, chat } of changes) {
    const stored = findChat(id);
    if (!chat && stored) deleteChat(stored);
    if (chat && chat.updated >= (stored?.updated ?? 0)) saveChat(chat);
  }
}

function takeOldChats() {
  for (const key of attempt(() => Object.keys(localStorage)) ?? []) {
    if (!key.startsWith(OLD)) continue;
    const old = attempt(() => JSON.parse(localStorage.getItem(key)));
    const fields = { id: key.slice(OLD.length), updated: Number(old?.updated) || 0 };
    if (!areMessages(old?.messages)) continue;
    saveChat(chatOf(old.messages, fields));
    localStorage.removeItem(key);
  }
}

function attempt(action) {
  try { return action(); } catch { return null; } // broken, or storage is forbidden
}
