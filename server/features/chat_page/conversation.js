// The conversation that is shown, and the answers to it.

import { RunningAnswer } from "./answer.js";
import { $, announce, create } from "./dom.js";
import { chatFacts } from "./facts.js";
import { download, fileName } from "./files.js";
import { scrollToEnd } from "./scroll.js";
import { streamChat } from "./server.js";
import { requestFields, showSettings } from "./settings.js";
import { exportState, saveState } from "./state_requests.js";
import { showLoad } from "./status.js";
import { comeBack, leave, rememberOpen, saveChat } from "./store.js";
import { addTurn, forkOf, messagesOf, newChat, showTurn, shownTurns, title, turnsTo, versions } from "./tree.js";
import { addAnswerTools, turnElement } from "./turns.js";

const SAVE_EVERY_MS = 1000; // while an answer arrives

let chat = newChat();
let changed = () => {};
let running = null; // the answer that arrives: { chat, parent, turn, answer, abort, loadBefore }
let load; // of the server, a second ago at most

export const currentChat = () => chat;
export const isRunning = () => Boolean(running);

// Calls a listener when another conversation is shown, and when one begins or ends an answer.
export const whenChanged = (listener) => { changed = listener; };

const actions = { edit, answer: answerTo, regenerate, proceed, choose, fork, save: keepState, download: downloadState };

// --- showing

export function openChat(other) {
  stop();
  showRunning(null);
  chat = other;
  showSettings(chat);
  showChat();
  showError("");
  changed();
}

export function showChat() {
  showTurns(shownTurns(chat));
  rememberOpen(chat);
  scrollToEnd();
}

function showTurns(turns) {
  const elements = turns.map((turn) => turnElement(chat, turn, actions));
  if (chat.state) elements.unshift(originElement());
  $("talk").replaceChildren(...elements);
  $("talk").hidden = elements.length === 0;
  $("welcome").hidden = elements.length > 0;
  $("about").textContent = chatFacts(turns);
}

function originElement() {
  const text = `This chat goes on from a saved state of ${chat.state.tokens.toLocaleString()} tokens.`;
  return create("p", { className: "quiet origin" }, text);
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
  const hasKeyboard = matchMedia("(pointer: fine)").matches; // on a phone, focus would open the keyboard
  const focused = document.activeElement;
  if (hasKeyboard && (focused === document.body || !focused.checkVisibility())) $("text").focus();
}

// --- asking

export function ask(text) {
  answerTo(addTurn(chat, shownTurns(chat).at(-1), { role: "user", content: text }));
}

function edit(turn, text) {
  answerTo(addTurn(chat, { id: turn.parent }, { role: "user", content: text }));
}

function answerTo(turn) {
  run(turn, { role: "assistant", content: "" });
}

function regenerate(turn) {
  answerTo(turnsTo(chat, turn).at(-2));
}

function proceed(turn) {
  run(turnsTo(chat, turn).at(-2), turn, { continue_final_message: true });
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
  announce("A new chat with the messages up to here");
}

// --- states

async function keepState(turn) {
  const of = chat;
  try {
    const state = await saveState(turn.request);
    turn.state = state.id;
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
    if (error.status === 404) turn.state = null; // so that it can be saved again
  }
}

export function stop() {
  running?.abort.abort();
}

// --- answers

// Lets the server answer a message, or continue an answer below it. What has come of the answer is stored with it.
async function run(parent, turn, fields = {}) {
  if (running) return;
  const before = { ...turn };
  const messages = messagesOf(turn.id ? turnsTo(chat, turn) : turnsTo(chat, parent));
  const mine = { chat, parent, turn, abort: new AbortController(), saved: 0, loadBefore: load };
  turn.end = "lost"; // until the server says more
  save(mine);
  showTurns(turnsTo(chat, parent));
  showError("");
  mine.answer = new RunningAnswer(turn);
  $("talk").append(mine.answer.element);
  scrollToEnd();
  showRunning(mine);
  announce("Waiting for the answer");
  changed();
  const problem = await receive(mine, { ...requestFields(messages), ...origin(chat), ...fields });
  const isNothingNew = turn.content === before.content;
  if (isNothingNew && turn.end !== "stop") turn.end = before.end;
  if (running === mine) showRunning(null);
  save(mine);
  changed();
  if (chat !== mine.chat) return;
  showEnd(mine, problem || (isNothingNew && turn.end === "stop" ? "The model ended its answer without any text." : ""));
}

const origin = ({ state }) => (state ? { from_state: state.id } : {});

// Returns what went wrong, in a line.
async function receive(mine, fields) {
  try {
    for await (const chunk of streamChat(fields, mine.abort.signal)) take(mine, chunk);
    return "";
  } catch (error) {
    if (error.name !== "AbortError") return error.message;
    if (mine.turn.end === "lost") mine.turn.end = "stopped";
    return "";
  }
}

function take(mine, chunk) {
  mine.answer.take(chunk);
  if (mine.turn.content && !mine.turn.id) addTurn(mine.chat, mine.parent, mine.turn);
  if (performance.now() - mine.saved > SAVE_EVERY_MS) save(mine);
}

function save(mine) {
  mine.saved = performance.now();
  mine.chat.updated = Date.now();
  saveChat(mine.chat);
}

function showEnd({ turn, answer }, problem) {
  answer.end();
  $("about").textContent = chatFacts(turnsTo(chat, turn));
  if (turn.id) addAnswerTools(answer.element, chat, turn, actions);
  else showChat();
  if (problem) showError(problem);
  const stopped = turn.end === "stopped" ? "Stopped. " : "";
  announce(turn.id ? `${stopped}Answer: ${answer.body.innerText}` : problem || "Stopped.");
  focusText();
  showLoad();
}

// Shows how much of the prompt has been read. The server counts the tokens of all requests together, so this is an upper
// bound while others are read.
export function showReading(now) {
  load = now;
  if (!now || !running?.loadBefore) return;
  const read = (counts) => counts.prompt_tokens + counts.cached_tokens;
  running.answer.showReading(read(now) - read(running.loadBefore));
}

addEventListener("pagehide", () => {
  if (running) save(running);
  leave();
});
addEventListener("pageshow", (event) => { if (event.persisted) comeBack(); });
