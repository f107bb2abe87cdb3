// The conversation that is shown, and the answers to it.

import { showAddress } from "./address.js";
import { RunningAnswer } from "./answer.js";
import { $, announce, create, focusMessage } from "./dom.js";
import { download, fileName } from "./files.js";
import { isAtEnd, scrollToEnd } from "./scroll.js";
import { streamChat } from "./server.js";
import { requestFields, showSettings } from "./settings.js";
import { exportState, saveState } from "./state_requests.js";
import { showLoad } from "./status.js";
import { comeBack, draftOf, leave, rememberOpen, saveChat } from "./store.js";
import { addTurn, besideTurns, forkOf, messagesOf, newChat, showTurn, shownTurns, title, turnsTo, versions } from "./tree.js";
import { addAnswerTools, besideElement, oldAnswer, turnElement } from "./turns.js";
import { endUndo } from "./undo.js";

const SAVE_EVERY_MS = 1000; // while an answer arrives

let chat = newChat();
let changed = () => {};
let running = null; // the answers that arrive: { chat, parent, path, fields, answers, tokens, abort, saved, loadBefore }
let load; // of the server, a second ago at most

export const currentChat = () => chat;
export const isRunning = () => Boolean(running);
export const isUndecided = () => besideTurns(chat).length > 0;

// Calls a listener when another conversation is shown, and when one begins or ends an answer.
export const whenChanged = (listener) => { changed = listener; };

const actions = { edit, answer: answerTo, regenerate, proceed, choose, fork, pick, save: keepState, download: downloadState };

// --- showing

export function openChat(other) {
  stop();
  showRunning(null);
  endUndo();
  chat = other;
  showSettings(chat);
  showChat();
  showError("");
  $("text").value = draftOf(chat);
  $("text").dispatchEvent(new Event("input"));
  changed();
}

export function showChat() {
  showTurns(shownTurns(chat));
  rememberOpen(chat);
  showAddress(chat);
  scrollToEnd();
}

function showTurns(turns) {
  const beside = besideTurns(chat);
  const elements = turns.slice(0, beside.length ? -1 : undefined).map((turn) => turnElement(chat, turn, actions));
  if (beside.length) elements.push(besideElement(beside.map((turn) => oldAnswer(chat, turn, actions, true))));
  if (chat.state) elements.unshift(originElement(chat.state));
  $("talk").replaceChildren(...elements);
  $("talk").hidden = elements.length === 0;
  $("welcome").hidden = elements.length > 0;
}

function originElement({ tokens, turn }) {
  const what = turn ? "Other versions of its messages are not in the state." : "Its text can’t be shown.";
  return create("p", { className: "quiet origin" }, `From a saved state of ${tokens.toLocaleString()} tokens. ${what}`);
}

function showRunning(now) {
  running = now;
  document.body.classList.toggle("busy", Boolean(running));
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
}

export function showError(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
}

function focusText() {
  const focused = document.activeElement;
  if (focused === document.body || !focused.checkVisibility()) focusMessage();
}

// --- asking

// Asks for answers to a text, or for more answers to the last message.
export function ask(text, count) {
  endUndo();
  const last = shownTurns(chat).findLast((turn) => turn.role === "user");
  if (text) answerTo(addTurn(chat, shownTurns(chat).at(-1), { role: "user", content: text }), count);
  else if (last) answerTo(last, count);
}

function edit(turn, text) {
  answerTo(addTurn(chat, { id: turn.parent }, { role: "user", content: text }));
}

// Opens the last message that is shown for editing.
export function editLast() {
  if (!running) [...document.querySelectorAll("[aria-label='Edit message']")].at(-1)?.click();
}

function answerTo(turn, count = 1) {
  run(turn, Array.from({ length: count }, () => ({ role: "assistant", content: "" })), count > 1 ? { n: count } : {});
}

function regenerate(turn, count) {
  answerTo(turnsTo(chat, turn).at(-2), count);
}

function proceed(turn) {
  run(turnsTo(chat, turn).at(-2), [turn], { continue_final_message: true });
}

// Goes on with one of the answers that are shown side by side.
function pick(turn) {
  showTurn(chat, turn);
  chat.beside = [];
  saveChat(chat);
  showChat();
  announce("The chat goes on with this answer");
  focusText();
}

function choose(turn, label) {
  showTurn(chat, turn);
  saveChat(chat);
  showTurns(shownTurns(chat));
  focusTool(turn, `[aria-label="${label}"]:enabled`, ".version:enabled");
  const all = versions(chat, turn);
  announce(`Version ${all.indexOf(turn) + 1} of ${all.length}`);
}

// Focuses the first tool of a turn that there is.
function focusTool(turn, ...selectors) {
  const element = document.querySelector(`[data-turn="${turn.id}"]`);
  selectors.map((selector) => element?.querySelector(selector)).find(Boolean)?.focus();
}

function fork(turn) {
  const forked = forkOf(chat, turn);
  saveChat(forked);
  openChat(forked);
  focusMessage();
  announce("A new chat with the messages up to here");
}

// --- states

async function keepState(turn) {
  const of = chat;
  try {
    const state = await saveState(turn.request, turn.index);
    turn.state = state.id;
    turn.saved = { tokens: state.tokens, bytes: state.bytes };
    saveChat(of);
    if (chat !== of || running) return;
    showTurns(shownTurns(chat));
    focusTool(turn, ".states-only");
    announce(`Saved the state of ${state.tokens} tokens`);
  } catch (error) {
    showError(error.message);
  }
}

async function downloadState(turn) {
  const name = title(chat);
  try {
    download(`${fileName(name)}.state`, await exportState(turn.state));
  } catch (error) {
    showError(error.message);
    if (error.status === 404) Object.assign(turn, { state: null, saved: null }); // so that it can be saved again
  }
}

export function stop() {
  running?.abort.abort();
}

// --- answers

// Lets the server answer a message, or continue an answer below it. What has come of the answers is stored with them.
async function run(parent, turns, fields) {
  if (running) return;
  const before = turns.map(({ content, end }) => ({ content, end }));
  const path = turnsTo(chat, turns[0].id ? turns[0] : parent);
  const mine = { chat, path, fields, parent, tokens: 0, abort: new AbortController(), saved: 0, loadBefore: load };
  for (const turn of turns) turn.end = "lost"; // until the server says more
  chat.beside = [];
  save(mine);
  showAddress(chat);
  showTurns(turnsTo(chat, parent));
  showError("");
  mine.answers = turns.map((turn) => new RunningAnswer(turn));
  $("talk").append(besideElement(mine.answers.map(({ element }) => element)));
  scrollToEnd();
  showRunning(mine);
  announce("Waiting for the answer");
  changed();
  const problem = await receive(mine);
  const isOld = (turn, place) => turn.content === before[place].content;
  turns.forEach((turn, place) => { if (isOld(turn, place) && turn.end !== "stop") turn.end = before[place].end; });
  if (running === mine) showRunning(null);
  save(mine);
  changed();
  const isNothing = turns.every((turn, place) => isOld(turn, place) && turn.end === "stop");
  if (chat === mine.chat) showEnd(mine, problem || (isNothing ? "The model ended its answer without any text." : ""));
}

// Returns the fields of a request for the answer after some turns. It continues the chat's state if it can.
function requestOf({ state }, turns) {
  const last = turns.findIndex(({ id }) => id === state?.turn); // of the state's turns
  const isAfter = state && (!state.turn || (last >= 0 && last < turns.length - 1));
  return isAfter
    ? { ...requestFields(messagesOf(turns.slice(last + 1))), from_state: state.id }
    : requestFields(messagesOf(turns));
}

// Returns what went wrong, in a line. A state whose text is known need not be there any more.
async function receive(mine) {
  const fields = { ...requestOf(mine.chat, mine.path), ...mine.fields };
  try {
    for await (const chunk of streamChat(fields, mine.abort.signal)) take(mine, chunk);
    return "";
  } catch (error) {
    if (error.status === 404 && mine.chat.state?.turn) {
      mine.chat.state = null;
      return receive(mine);
    }
    if (error.name !== "AbortError") return error.message;
    for (const { turn } of mine.answers) if (turn.end === "lost") turn.end = "stopped";
    return "";
  }
}

// Takes a chunk, which has one answer's text, and the number of tokens of all answers.
function take(mine, chunk) {
  const answer = mine.answers[chunk.choices[0]?.index ?? 0];
  const tokens = chunk.usage?.completion_tokens ?? mine.tokens;
  answer.take(chunk, tokens - mine.tokens);
  mine.tokens = tokens;
  if (answer.turn.content && !answer.turn.id) {
    addTurn(mine.chat, mine.parent, answer.turn);
    mine.chat.beside = mine.answers.map(({ turn }) => turn.id).filter(Boolean);
  }
  if (performance.now() - mine.saved > SAVE_EVERY_MS) save(mine);
}

function save(mine) {
  mine.saved = performance.now();
  mine.chat.updated = Date.now();
  saveChat(mine.chat);
}

function showEnd({ answers }, problem) {
  const follow = isAtEnd();
  for (const answer of answers) answer.end();
  const isBeside = answers.length > 1;
  if (!answers.every(({ turn }) => turn.id)) showChat();
  else for (const { element, turn } of answers) addAnswerTools(element, chat, turn, actions, isBeside);
  if (follow) scrollToEnd();
  showError(problem);
  const stopped = answers.some(({ turn }) => turn.end === "stopped") ? "Stopped. " : "";
  const texts = answers.filter(({ turn }) => turn.id).map(({ body }) => `Answer: ${body.innerText}`);
  announce(texts.length ? stopped + texts.join(" ") : problem || "Stopped.");
  focusText();
  showLoad();
}

// Shows how much of the prompt has been read. The server counts the tokens of all requests together, so this is an upper
// bound while others are read.
export function showReading(now) {
  load = now;
  if (!now || !running?.loadBefore) return;
  const read = (counts) => counts.prompt_tokens + counts.cached_tokens;
  for (const answer of running.answers) answer.showReading(read(now) - read(running.loadBefore));
}

addEventListener("pagehide", () => {
  if (running) save(running);
  leave();
});
addEventListener("pageshow", (event) => { if (event.persisted) comeBack(); });
