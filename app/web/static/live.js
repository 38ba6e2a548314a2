// Keeps a page up to date: figures as they come, the rest when something changed, and nothing under a reader's hands.
"use strict";

(() => {
  const main = document.getElementById("main");
  const told = document.getElementById("live-state");
  const kind = main.dataset.live;
  let mark = null;
  let late = false;

  const number = (value) => value.toLocaleString("en", { maximumFractionDigits: 1 }).replaceAll(",", "\u202f");

  // Whoever is typing, choosing or reading what they unfolded is not to lose it.
  const inUse = () =>
    (document.activeElement && document.activeElement.closest("form, details")) ||
    main.querySelector("details[open]") ||
    [...main.querySelectorAll("input:not([type=hidden]), textarea")].some((field) => field.value !== field.defaultValue);

  const renew = async () => {
    if (inUse()) {
      late = true;
      told.textContent = "· something changed: load the page again to see it";
      return;
    }
    const answer = await fetch(location.href, { headers: { accept: "text/html" } });
    if (!answer.ok || answer.redirected) return;
    const next = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("main");
    if (!next || inUse()) return;
    const focused = document.activeElement && document.activeElement.getAttribute("href");
    main.replaceChildren(...next.childNodes);
    if (focused) main.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
    if (next.dataset.live) main.dataset.live = next.dataset.live;
    else delete main.dataset.live;
    if (kind === "soon" && main.dataset.live === "soon") setTimeout(renew, 1000);
  };

  if (kind === "soon") setTimeout(renew, 1000);
  if (kind !== "page" || !window.EventSource) return;

  const show = (event) => {
    const { figures, mark: now, problem } = JSON.parse(event.data);
    if (problem) {
      told.textContent = `· ${problem}`;
      return;
    }
    if (!late) told.textContent = "· live";
    for (const [name, value] of Object.entries(figures)) {
      for (const place of main.querySelectorAll(`[data-figure="${name}"]`)) {
        const text = number(value);
        if (place.textContent !== text) place.textContent = text;
      }
    }
    if (mark !== null && mark !== now) renew();
    mark = now;
  };

  // A page that nobody sees does not listen: browsers hold few connections to one server, whatever the number of tabs.
  let source = null;
  const listen = () => {
    if (document.hidden) {
      source?.close();
      source = null;
    } else if (!source) {
      source = new EventSource("/events");
      source.onmessage = show;
      source.onerror = () => { told.textContent = "· not live: the worker does not answer"; };
    }
  };
  document.addEventListener("visibilitychange", listen);
  addEventListener("pagehide", () => source?.close());
  listen();
})();
