// The header: the model and how busy the server is.

import { $ } from "./dom.js";
import { request } from "./server.js";

let isOffline = false;

export async function showModel() {
  try {
    const { data } = await (await request("v1/models")).json();
    const name = data[0]?.id ?? "no model";
    $("model").textContent = name;
    $("model").title = name;
    document.title = `${name} – Roost`;
  } catch (error) {
    isOffline ||= Boolean(error.isOffline);
    $("model").textContent = error.message;
    $("model").title = error.message;
    if (error.status === 401 && !$("settings").open) askForKey();
    else if (error.status === 503) setTimeout(showModel, 1000);
  }
}

function askForKey() {
  $("settings").showModal();
  $("key").focus();
}

export async function showLoad() {
  if (document.hidden) return;
  try {
    const load = await (await request("load")).json();
    $("slots").max = Math.max(load.slots, 1);
    $("slots").value = load.running;
    const waiting = load.waiting ? `, ${load.waiting} waiting` : "";
    $("slots-text").textContent = load.slots ? `${load.running} of ${load.slots} slots${waiting}` : "";
    if (isOffline) { isOffline = false; showModel(); }
  } catch (error) {
    isOffline ||= Boolean(error.isOffline);
    $("slots-text").textContent = "";
  }
}
