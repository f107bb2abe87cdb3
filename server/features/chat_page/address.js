// Addresses of chats, `#/chat/ID`: to go back to, to bookmark, and to open in another tab.

import { findChat } from "./store.js";

const PREFIX = "#/chat/";

let shown; // id of the chat that the browser's history is at

// Returns the address of a chat; one that has no message yet has none of its own.
export const addressOf = ({ id }) => (findChat(id) ? PREFIX + id : "#/");

export const chatAt = (address) => (address.startsWith(PREFIX) ? findChat(address.slice(PREFIX.length)) : undefined);

// Says that the address is already that of a chat.
export function keepAddress({ id }) {
  shown = id;
}

// Shows a chat's address. Another chat than before is a step that one can go back from.
export function showAddress(chat) {
  const address = addressOf(chat);
  if (address !== location.hash) history[chat.id === shown ? "replaceState" : "pushState"](null, "", address);
  shown = chat.id;
}
