// Renews <main> when something happened. Without it the page works, and is renewed by hand.
"use strict";

const RENEW_MS = 400; // at most so often: a storm of events is one picture
const live = document.getElementById("live");
const main = () => document.getElementById("main");

let due = null;
let news = 0;

function renew() {
  due = null;
  live.textContent = news === 1 ? "live, 1 event" : `live, ${news} events`;
  htmx.trigger(main(), "renew");
}

function happened() {
  news += 1;
  due ??= setTimeout(renew, RENEW_MS);
}

if (document.body.dataset.after !== undefined) {
  let after = document.body.dataset.after;
  const listen = () => {
    const source = new EventSource(`/ui/stream?after=${after}`);
    source.onopen = () => { live.textContent = "live"; };
    source.onmessage = (event) => { after = event.lastEventId; happened(); };
    source.onerror = () => {
      // Not the browser's own retry: that would begin where this page began.
      source.close();
      live.textContent = "not connected: what is shown may be old";
      setTimeout(listen, 1000);
    };
  };
  listen();
}
