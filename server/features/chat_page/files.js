// Conversations as files: JSON with all branches, Markdown of the one that is shown.

import { create } from "./dom.js";
import { areMessages, chatOf, checkedChat, shownTurns, title } from "./tree.js";

const MARK = /^(\\*)<!-- (system|user|assistant) -->$/gm; // a line before each message; in a message it gets a backslash
const HEADS = { system: "**System prompt**", user: "**You**", assistant: "**Answer**" };

export function download(name, blob) {
  const link = create("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the browser may ask where to first
}

export function downloadJson(chats, name = title(chats[0])) {
  const text = JSON.stringify({ format: "roost-chats-1", chats }, null, 1);
  download(`${fileName(name)}.json`, new Blob([text], { type: "application/json" }));
}

export function downloadMarkdown(chat) {
  download(`${fileName(title(chat))}.md`, new Blob([markdownOf(chat)], { type: "text/markdown" }));
}

export const fileName = (text) => text.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60).replace(/^-+|-+$/g, "") || "chat";

export function markdownOf(chat) {
  const system = chat.settings.system ? [{ role: "system", content: chat.settings.system }] : [];
  const part = ({ role, content }) =>
    `<!-- ${role} -->\n${HEADS[role]}\n\n${content.replace(MARK, (line) => `\\${line}`)}\n`;
  return [`# ${title(chat).replaceAll("\n", " ")}\n`, ...[...system, ...shownTurns(chat)].map(part)].join("\n");
}

// Returns the conversations in a file's text.
export function chatsOf(text, name) {
  const chats = (name.endsWith(".md") ? [chatOfMarkdown(text.replaceAll("\r\n", "\n"))] : chatsOfJson(text)).filter(Boolean);
  if (!chats.length) throw new Error(`${name} holds no conversation: take a JSON or Markdown file that this page wrote.`);
  return chats;
}

function chatsOfJson(text) {
  let value;
  try { value = JSON.parse(text); } catch { return []; }
  if (Array.isArray(value?.chats)) return value.chats.map(checkedChat);
  return [chatOfMessages(value?.messages ?? value)];
}

function chatOfMarkdown(text) {
  const [head, ...parts] = text.split(/^(?=<!-- (?:system|user|assistant) -->$)/m);
  const messages = parts.map((part) => {
    const [mark, name, , ...lines] = part.split("\n");
    const role = /\w+/.exec(mark)[0];
    const written = name === HEADS[role] ? lines : part.split("\n").slice(1); // the user may have removed the heading
    return { role, content: written.join("\n").trim().replace(MARK, (line) => line.replace("\\", "")) };
  });
  return chatOfMessages(messages, /^# (.+)$/m.exec(head)?.[1]);
}

// Returns the conversation of messages in OpenAI's form, or null. The first one may be a system prompt.
export function chatOfMessages(messages, name = "") {
  const isSystem = Array.isArray(messages) && messages[0]?.role === "system";
  const turns = isSystem ? messages.slice(1) : messages;
  const settings = isSystem ? { system: String(messages[0].content) } : {};
  return areMessages(turns) ? chatOf(turns, { title: name, settings }) : null;
}
