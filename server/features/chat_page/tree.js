// A conversation as a tree of turns: Edit and Regenerate add siblings, and no turn is ever removed.
//
// A chat is { id, updated, title, settings, turns, shown, beside, state }: `beside` has the ids of answers that are shown side
// by side, `state` is { id, tokens, turn } of the saved state that the chat began with, after whose last turn new messages
// go on from it. A turn is { id, parent, role, content } and, for an answer,
// how it ended and what the server said of it; see answer.js. `shown` has the visible child of each parent. Fields are
// replaced, never changed inside, so that a copy of each turn tells what has changed since.

const MAX_MESSAGES = 16_384; // of a request

export function newId() {
  return [...crypto.getRandomValues(new Uint32Array(2))].map((part) => part.toString(36)).join("");
}

export function newChat(fields = {}) {
  return { id: newId(), updated: Date.now(), title: "", settings: {}, turns: [], shown: {}, ...fields };
}

// Makes a turn of fields, below another turn or at the beginning, and shows it.
export function addTurn(chat, parent, fields) {
  const turn = Object.assign(fields, { id: newId(), parent: parent?.id ?? "" });
  chat.turns.push(turn);
  showTurn(chat, turn);
  return turn;
}

// Returns the answers that are shown side by side, until one of them is picked.
export function besideTurns(chat) {
  const turns = chat.turns.filter((turn) => chat.beside?.includes(turn.id));
  return turns.length > 1 && turns.includes(shownTurns(chat).at(-1)) ? turns : [];
}

export function showTurn(chat, turn) {
  chat.shown = { ...chat.shown, [turn.parent]: turn.id };
}

// Returns a turn and its alternatives, the oldest first.
export function versions(chat, turn) {
  return chat.turns.filter((other) => other.parent === turn.parent);
}

// Returns the turns that are shown, the first one first.
export function shownTurns(chat) {
  const children = new Map(); // the shown one of each parent, or the last one
  for (const turn of chat.turns) {
    const other = children.get(turn.parent);
    if (!other || other.id !== chat.shown[turn.parent]) children.set(turn.parent, turn);
  }
  const turns = [];
  for (let turn = children.get(""); turn; turn = children.get(turn.id)) turns.push(turn);
  return turns;
}

// Returns the turns from the first one to this one.
export function turnsTo(chat, turn) {
  const byId = new Map(chat.turns.map((other) => [other.id, other]));
  const turns = [];
  for (let next = turn; next; next = byId.get(next.parent)) turns.unshift(next);
  return turns;
}

// Returns a new conversation with the turns up to this one.
export function forkOf(chat, turn) {
  const { settings, state } = chat;
  const turns = turnsTo(chat, turn);
  return newChat({ title: `Fork: ${title(chat).replace(/^Fork: /, "")}`, settings, state, turns: structuredClone(turns) });
}

// Returns a copy of a conversation that later changes leave as it is.
export const copyOf = (chat) => ({ ...chat, turns: chat.turns.map((turn) => ({ ...turn })) });

// Returns the fields of a conversation and of its turns that differ from those of an earlier copy, if there is one.
export function changesOf(chat, copy) {
  const before = new Map(copy?.turns.map((turn) => [turn.id, turn]));
  const turns = chat.turns.map((turn) => ({ ...changedFields(turn, before.get(turn.id)), id: turn.id }));
  return { ...changedFields(chat, copy), id: chat.id, turns: turns.filter((turn) => Object.keys(turn).length > 1) };
}

function changedFields(now, before) {
  return Object.fromEntries(Object.entries(now).filter(([name, value]) => value !== before?.[name]));
}

// Gives a conversation what is stored, but for what has changed in it since an earlier copy.
export function merge(chat, copy, stored) {
  const changes = changesOf(chat, copy);
  applyChanges(chat, stored);
  applyChanges(chat, changes);
}

export function applyChanges(chat, { turns, ...fields }) {
  Object.assign(chat, fields);
  const byId = new Map(chat.turns.map((turn) => [turn.id, turn]));
  for (const turn of turns) {
    if (byId.has(turn.id)) Object.assign(byId.get(turn.id), turn);
    else chat.turns.push(turn);
  }
}

export const messagesOf = (turns) => turns.map(({ role, content }) => ({ role, content }));

export function chatOf(messages, fields = {}) {
  const turns = [];
  for (const { role, content } of messages) turns.push({ id: newId(), parent: turns.at(-1)?.id ?? "", role, content });
  return newChat({ ...fields, turns });
}

export function title(chat) {
  return chat.title || shownTurns(chat)[0]?.content.trim().slice(0, 80) || "New chat";
}

// Returns what identifies the text of a conversation: that of all its turns, and that of those that are shown.
export const textsOf = (chat) => [chat.turns, shownTurns(chat)].map((turns) => JSON.stringify(messagesOf(turns)));

const isMessage = (value) => ["user", "assistant"].includes(value?.role) && typeof value.content === "string";

// Returns whether messages, such as those of a file, can become a conversation.
export const areMessages = (value) =>
  Array.isArray(value) && value.length > 0 && value.length <= MAX_MESSAGES && value.every(isMessage);

const isId = (value) => typeof value === "string" && /^\w{1,40}$/.test(value);

// Returns a conversation of a file with all its fields, or null if it is none.
export function checkedChat(value) {
  const ids = new Set([""]);
  const follows = (turn) => ids.has(turn.parent) && !ids.has(turn.id) && Boolean(ids.add(turn.id));
  const isTurn = (turn) => isMessage(turn) && isId(turn.id) && follows(turn);
  if (!Array.isArray(value?.turns) || !value.turns.length || !value.turns.every(isTurn)) return null;
  const { turns, title: name, settings, shown, updated, state } = value;
  return newChat({
    turns: turns.map(checkedTurn), updated: Number(updated) || 0, title: typeof name === "string" ? name : "",
    settings: stringsOf(settings), shown: stringsOf(shown),
    ...(isId(state?.id) ? { state: { id: state.id, tokens: Number(state.tokens) || 0, turn: String(state.turn ?? "") } } : {}),
  });
}

// Leaves out what only the server knows that the answer came from: its id, and that of its state.
function checkedTurn({ id, parent, role, content, end, usage, firstMs, rate }) {
  const turn = { id, parent, role, content, ...(typeof end === "string" ? { end } : {}) };
  const counts = ["prompt", "cached", "completion", "total"].map((name) => [name, usage?.[name]]);
  if (counts.every(([, count]) => Number.isFinite(count))) turn.usage = Object.fromEntries(counts);
  if (Number.isFinite(firstMs)) turn.firstMs = firstMs;
  if (Number.isFinite(rate)) turn.rate = rate;
  return turn;
}

function stringsOf(value) {
  return Object.fromEntries(Object.entries(value ?? {}).filter(([, each]) => typeof each === "string"));
}
