// Requests about saved states: what the server has read of a conversation, kept under an id.

import { request } from "./server.js";

const get = async (path) => (await request(path)).json();
const post = async (path, options) => (await request(path, { method: "POST", ...options })).json();

// Saves the state after an answer that has ended lately, by the id of its response.
export const saveState = (id, index = 0) => post("v1/states", { body: JSON.stringify({ request_id: id, index }) });

// Returns a state, with the messages of the chat.
export const readState = (id) => get(`v1/states/${id}`);

// Returns the newest states, and whether there are more.
export async function listStates() {
  const { data, has_more: hasMore } = await get("v1/states?limit=100");
  return { states: data, hasMore };
}

export const exportState = async (id) => (await request(`v1/states/${id}/export`)).blob();

export const importState = (file) =>
  post("v1/states/import", { body: file, headers: { "content-type": "application/octet-stream" } });

export const deleteState = (id) => request(`v1/states/${id}`, { method: "DELETE" });

// Shows what concerns states if the server has them.
export async function findStates() {
  const isThere = await request("v1/states?limit=1").then(() => true, () => false);
  document.body.classList.toggle("has-states", isThere);
}
