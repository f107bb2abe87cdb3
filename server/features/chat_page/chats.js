// Conversations in the browser's storage, one entry each, so that tabs do not overwrite each other's.

const PREFIX = "roost-chat-";
const OPEN = "roost-open";

export function newChat() {
  const random = crypto.getRandomValues(new Uint32Array(2));
  return { id: [...random].map((part) => part.toString(36)).join(""), updated: Date.now(), messages: [] };
}

export const title = (chat) => chat.messages[0]?.content.slice(0, 80) ?? "";

// Returns all stored conversations, the newest first.
export function listChats() {
  const keys = stored(() => Object.keys(localStorage)) ?? [];
  const chats = keys.filter((key) => key.startsWith(PREFIX)).map((key) => loadChat(key.slice(PREFIX.length)));
  return chats.filter(Boolean).sort((one, other) => other.updated - one.updated);
}

export function loadChat(id) {
  const chat = stored(() => JSON.parse(localStorage.getItem(PREFIX + id)));
  const isMessage = (message) => ["user", "assistant"].includes(message?.role) && typeof message.content === "string";
  const isChat = Array.isArray(chat?.messages) && chat.messages.length > 0 && chat.messages.every(isMessage);
  return isChat ? { id, updated: Number(chat.updated) || 0, messages: chat.messages } : null;
}

// Stores a conversation; removes the oldest others while the storage is full.
export function saveChat(chat) {
  if (!chat.messages.length) return deleteChat(chat.id);
  const text = JSON.stringify({ updated: chat.updated, messages: chat.messages });
  for (;;) {
    try {
      localStorage.setItem(PREFIX + chat.id, text);
      return;
    } catch {
      const oldest = listChats().filter((other) => other.id !== chat.id).at(-1);
      if (!oldest) return; // forbidden, or too long: it lasts as long as the page
      deleteChat(oldest.id);
    }
  }
}

export function deleteChat(id) {
  stored(() => localStorage.removeItem(PREFIX + id));
}

export function rememberOpen(chat) {
  stored(() => sessionStorage.setItem(OPEN, chat.id));
}

// Returns the conversation that this tab showed before it was reloaded.
export function openedChat() {
  return loadChat(stored(() => sessionStorage.getItem(OPEN)) ?? "") ?? newChat();
}

function stored(action) {
  try { return action(); } catch { return null; } // broken, or storage is forbidden
}
