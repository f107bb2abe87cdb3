// The header: the model and how busy the server is.

import { $ } from "./dom.js";
import { request } from "./server.js";
import { askForKey, showTokenLimit } from "./settings.js";

let isOffline = false;

export async function showModel() {
  try {
    const info = await (await request("server_info")).json();
    $("model").textContent = info.ready ? info.model : `${info.model} is loading`;
    $("model").title = info.model;
    document.title = `${info.model} – Roost`;
    showTokenLimit(info.max_tokens_limit);
    if (!info.ready) setTimeout(showModel, 1000);
  } catch (error) {
    isOffline ||= Boolean(error.isOffline);
    $("model").textContent = error.message;
    $("model").title = error.message;
    if (error.status === 401 && !$("settings").open) askForKey();
  }
}

// Shows how many slots are used, and returns the load; undefined if there is none to show.
export async function showLoad() {
  if (document.hidden) return;
  try {
    const load = await (await request("load")).json();
    $("slots").max = Math.max(load.slots, 1);
    $("slots").value = load.running;
    const waiting = load.waiting ? `, ${load.waiting} waiting` : "";
    $("slots-text").textContent = load.slots ? `${load.running} of ${load.slots} slots${waiting}` : "";
    if (isOffline) { isOffline = false; showModel(); }
    return load;
  } catch (error) {
    isOffline ||= Boolean(error.isOffline);
    $("slots-text").textContent = "";
  }
}
