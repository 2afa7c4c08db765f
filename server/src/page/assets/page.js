// Reloads <main> after an event. Without this script the page works, and the reader reloads it.
"use strict";

const RENEW_MS = 400; // least time between two reloads, so that many events cause one
const live = document.getElementById("live");
const main = () => document.getElementById("main");

let due = null;
let events = 0;

function renew() {
  due = null;
  live.textContent = events === 1 ? "live, 1 event" : `live, ${events} events`;
  htmx.trigger(main(), "renew");
}

function happened() {
  events += 1;
  due ??= setTimeout(renew, RENEW_MS);
}

if (document.body.dataset.after !== undefined) {
  let after = document.body.dataset.after;
  const listen = () => {
    const source = new EventSource(`/ui/stream?after=${after}`);
    source.onopen = () => { live.textContent = "live"; };
    source.onmessage = (event) => { after = event.lastEventId; happened(); };
    source.onerror = () => {
      // The browser's own retry would restart from the first event of this page.
      source.close();
      live.textContent = "not connected: the page may be out of date";
      setTimeout(listen, 1000);
    };
  };
  listen();
}
