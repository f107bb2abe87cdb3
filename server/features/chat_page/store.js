// Conversations in the browser's database. All are in memory, too, so that lists and searches need not wait.
//
// Several tabs may change one conversation, so a tab writes only the fields and turns that it has changed since it last read
// or wrote the conversation, and takes all others from the database.

import { applyChanges, areMessages, changesOf, chatOf, copyOf, merge } from "./tree.js";

const STORE = "chats";
const OPEN = "roost-open"; // id of the chat that this tab shows
const LEFT = "roost-left"; // changes that the database had no time for when the page was left
const OLD = "roost-chat-"; // prefix of conversations without branches, as earlier versions stored them

const chats = new Map();
const copies = new WeakMap(); // of conversations, as the database had them when this tab last read or wrote them
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
    for (const chat of await result(database.transaction(STORE).objectStore(STORE).getAll())) take(chat);
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
  if (stored) take(stored);
  else chats.delete(id);
}

// Takes a conversation as it is stored, but for what this tab has changed since.
function take(stored) {
  const chat = chats.get(stored.id) ?? stored;
  const copy = copyOf(stored);
  if (chat !== stored) merge(chat, copies.get(chat), stored);
  chats.set(chat.id, chat);
  copies.set(chat, copy);
}

export const findChat = (id) => chats.get(id);

// Returns all conversations, the newest first.
export const listChats = () => [...chats.values()].sort((one, other) => other.updated - one.updated);

export function saveChat(chat) {
  if (deleted.has(chat.id)) return;
  chats.set(chat.id, chat);
  let copy;
  const change = (store) => {
    store.get(chat.id).onsuccess = ({ target }) => {
      if (target.result) merge(chat, copies.get(chat), target.result);
      copy = copyOf(chat);
      store.put(chat);
    };
  };
  write(chat.id, change, () => copies.set(chat, copy));
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

function write(id, change, onWritten = () => {}) {
  if (!database) return;
  unwritten.add(id);
  const transaction = database.transaction(STORE, "readwrite");
  change(transaction.objectStore(STORE));
  transaction.oncomplete = () => { unwritten.delete(id); onWritten(); otherTabs.postMessage(id); };
  transaction.onabort = () => report("The browser has no room for this conversation: export it, then delete others.");
}

export function rememberOpen(chat) {
  attempt(() => sessionStorage.setItem(OPEN, chat.id));
}

// Returns the conversation that this tab showed before it was reloaded, if there is one.
export const openedChat = () => findChat(attempt(() => sessionStorage.getItem(OPEN)));

// A draft belongs to a chat, or to all that have no message yet.
const draftKey = (chat) => `roost-draft-${findChat(chat.id) ? chat.id : ""}`;

export const draftOf = (chat) => attempt(() => sessionStorage.getItem(draftKey(chat))) ?? "";

export function keepDraft(chat, text) {
  attempt(() => (text ? sessionStorage.setItem(draftKey(chat), text) : sessionStorage.removeItem(draftKey(chat))));
}

// Keeps what the database may have no time for while the page is left: of a conversation that it has, only the changes.
export function leave() {
  if (!unwritten.size) return;
  const left = [...unwritten].map((id) => {
    const chat = findChat(id);
    return { id, chat: chat && changesOf(chat, copies.get(chat)), isPart: copies.has(chat) };
  });
  attempt(() => localStorage.setItem(LEFT, JSON.stringify(left)));
}

// Forgets what was left if the page comes back as it was.
export function comeBack() {
  attempt(() => localStorage.removeItem(LEFT));
}

function takeLeftChanges() {
  const left = attempt(() => JSON.parse(localStorage.getItem(LEFT))) ?? [];
  comeBack();
  for (const { id, chat, isPart } of left) {
    const stored = findChat(id);
    if (!chat && stored) deleteChat(stored);
    if (!chat || (isPart && !stored)) continue; // deleted
    if (stored) applyChanges(stored, chat);
    saveChat(stored ?? chat);
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
