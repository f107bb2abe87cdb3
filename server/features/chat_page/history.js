// The dialog with the stored conversations.

import { deleteChat, listChats, title } from "./chats.js";
import { $, button, create } from "./dom.js";

export function showHistory(onOpen, onDelete) {
  const chats = listChats();
  const remove = (chat) => {
    deleteChat(chat.id);
    onDelete(chat.id);
    showHistory(onOpen, onDelete);
    ($("chats").querySelector("button") ?? $("close-history")).focus();
  };
  $("chats").replaceChildren(...chats.map((chat) => row(chat, onOpen, remove)));
  $("no-chats").hidden = chats.length > 0;
  $("delete-all").hidden = chats.length === 0;
  $("delete-all").onclick = () => {
    if (confirm(`Delete all ${chats.length} conversations?`)) for (const chat of chats) remove(chat);
  };
  if (!$("history").open) $("history").showModal();
}

function row(chat, onOpen, remove) {
  const open = button("", () => { $("history").close(); onOpen(chat.id); }, { className: "chat" });
  const when = new Date(chat.updated).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  open.append(create("span", {}, title(chat)), create("span", { className: "quiet" }, when));
  const drop = button("Delete", () => remove(chat), { className: "small" });
  drop.setAttribute("aria-label", `Delete “${title(chat)}”`);
  return create("li", {}, open, drop);
}
