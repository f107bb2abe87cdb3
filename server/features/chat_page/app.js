// The conversation that is shown, and what the controls do.

import { loadChat, newChat, openedChat, rememberOpen, saveChat } from "./chats.js";
import { $, announce } from "./dom.js";
import { showHistory } from "./history.js";
import { streamChat } from "./server.js";
import { loadSettings, requestFields, showTemperature, storeSettings } from "./settings.js";
import { showLoad, showModel } from "./status.js";
import { RunningAnswer, answerTurn, editTurn, isSendKey, scrollToEnd, userTurn } from "./turns.js";

let chat = openedChat();
let running = null; // the answer that arrives: { abort, chat, answer }

// --- showing

function showChat() {
  const turns = chat.messages.map(({ role, content }, index) => (role === "user"
    ? userTurn(content, { onEdit: (text) => edit(index, text) })
    : answerTurn(content, { onRegenerate: regenerate })));
  $("talk").replaceChildren(...turns);
  $("talk").hidden = turns.length === 0;
  $("welcome").hidden = turns.length > 0;
  rememberOpen(chat);
  scrollToEnd();
}

function showRunning(now) {
  running = now;
  document.body.classList.toggle("busy", Boolean(running));
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
}

function showError(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
}

function focusText() {
  const hasKeyboard = matchMedia("(pointer: fine)").matches; // on a phone, focus would open the keyboard
  const focused = document.activeElement;
  if (hasKeyboard && (focused === document.body || !focused.checkVisibility())) $("text").focus();
}

// --- answers

// Asks for the answer to a prompt that follows some messages. Without any text of an answer, the conversation becomes
// what it was, and `giveBack` gets the prompt.
async function ask(before, prompt, giveBack) {
  if (running) return;
  const asked = chat;
  const previous = asked.messages;
  const remember = (messages) => {
    Object.assign(asked, { messages, updated: Date.now() });
    saveChat(asked);
  };
  const messages = [...before, { role: "user", content: prompt }];
  remember(messages);
  showChat();
  showError("");
  const answer = new RunningAnswer();
  const mine = { abort: new AbortController(), chat: asked, answer };
  $("talk").append(answer.turn);
  scrollToEnd();
  showRunning(mine);
  announce("Waiting for the answer");

  let problem = "";
  try {
    for await (const chunk of streamChat(requestFields(messages), mine.abort.signal)) answer.take(chunk);
    if (!answer.text) problem = "The model ended its answer without any text.";
  } catch (error) {
    problem = error.name === "AbortError" ? "stopped" : error.message;
  }

  const isShown = chat === asked;
  if (running === mine) showRunning(null);
  if (mine.isDeleted) return;
  if (answer.text) {
    remember([...messages, { role: "assistant", content: answer.text }]);
    answer.end(problem === "stopped" ? ["stopped"] : [], regenerate);
  } else {
    remember(previous);
    if (isShown) { showChat(); giveBack(prompt); }
  }
  if (!isShown) return;
  if (problem && problem !== "stopped") showError(problem);
  announce(answer.text ? `${problem === "stopped" ? "Stopped. " : ""}Answer: ${answer.turn.firstChild.innerText}` : problem);
  focusText();
  showLoad();
}

function send() {
  const text = $("text").value.trim();
  if (!text || running) return;
  setText("");
  ask(chat.messages, text, (prompt) => { if (!$("text").value) setText(prompt); });
}

function regenerate() {
  const prompt = chat.messages.at(-2)?.content;
  if (prompt !== undefined) ask(chat.messages.slice(0, -2), prompt, () => {});
}

function edit(index, text) {
  const again = (prompt) => editTurn($("talk").children[index], prompt, (changed) => edit(index, changed));
  ask(chat.messages.slice(0, index), text, again);
}

function stop() {
  running?.abort.abort();
}

// --- conversations

function open(other) {
  stop();
  showRunning(null);
  chat = other;
  takeBackPrompt();
  showChat();
  showError("");
  $("text").focus();
}

// A page that was left before its answer came gives the prompt back.
function takeBackPrompt() {
  if (chat.messages.at(-1)?.role !== "user") return;
  if (!$("text").value) setText(chat.messages.at(-1).content);
  chat.messages = chat.messages.slice(0, -1);
}

function forget(id) {
  if (running?.chat.id === id) running.isDeleted = true;
  if (chat.id === id) open(newChat());
}

addEventListener("pagehide", () => {
  if (!running?.answer.text) return;
  const partial = { role: "assistant", content: running.answer.text };
  saveChat({ ...running.chat, messages: [...running.chat.messages, partial] });
});

// --- the controls

function setText(text) {
  $("text").value = text;
  fitText();
}

function fitText() {
  $("text").style.height = "auto";
  $("text").style.height = `${$("text").scrollHeight}px`;
}

$("ask").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("text").addEventListener("input", fitText);
$("text").addEventListener("keydown", (event) => {
  if (isSendKey(event)) { event.preventDefault(); send(); }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) stop();
});
$("stop").addEventListener("click", stop);
$("fresh").addEventListener("click", () => open(newChat()));
$("open-history").addEventListener("click", () => showHistory((id) => {
  if (id !== chat.id) open(loadChat(id) ?? newChat());
}, forget));
$("open-settings").addEventListener("click", () => $("settings").showModal());
$("temperature").addEventListener("input", showTemperature);
$("settings").addEventListener("close", () => { storeSettings(); showModel(); showLoad(); });
$("welcome").addEventListener("click", (event) => {
  if (!event.target.matches("li button") || running) return;
  setText(event.target.textContent);
  send();
});

loadSettings();
takeBackPrompt();
showChat();
showModel();
showLoad();
setInterval(showLoad, 1000);
