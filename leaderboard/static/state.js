/* The page is complete without these scripts; they sort, filter, compare and drill down.
   Here: small tools, and the state of the view, which lives in the fragment of the address. */
"use strict";

const select = (selector, root = document) => root.querySelector(selector);
const selectAll = (selector, root = document) => [...root.querySelectorAll(selector)];

/* Builds an element. Text is always text: what a plugin calls itself can never become markup. */
const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") element.addEventListener("click", value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
};

const announce = (text) => { select("#announce").textContent = text; };

/* Only what differs from the page as it was made is written, so that links stay short.
   A fragment without "=" is an ordinary place on the page. */
const State = (() => {
  const listeners = [];
  const parse = () => {
    const text = location.hash.slice(1);
    if (text.includes("=")) return new URLSearchParams(text);
    return new URLSearchParams(text ? { at: decodeURIComponent(text) } : {});
  };
  let params = parse();

  const fragment = () => {
    const keys = [...params.keys()];
    if (!keys.length) return "";
    return keys.length === 1 && keys[0] === "at" ? encodeURIComponent(params.get("at")) : `${params}`;
  };
  const write = () => {
    const address = location.href.split("#")[0] + (fragment() ? `#${fragment()}` : "");
    try {
      history.replaceState(null, "", address);
    } catch {
      location.hash = fragment(); /* some browsers refuse on file:// */
    }
  };

  const get = (key) => params.get(key) ?? "";
  const list = (key) => params.getAll(key);
  const set = (changes) => {
    for (const [key, value] of Object.entries(changes)) {
      params.delete(key);
      for (const entry of [value].flat()) if (entry) params.append(key, entry);
    }
    write();
  };
  const clear = () => {
    params = new URLSearchParams();
    write();
    apply();
  };
  const onApply = (listener) => listeners.push(listener);
  const apply = () => listeners.forEach((listener) => listener());

  const goTo = (id, behavior) => {
    const place = document.getElementById(id);
    if (!place) return;
    const folded = place.closest("details");
    if (folded) folded.open = true;
    place.scrollIntoView({ behavior });
  };
  addEventListener("hashchange", () => {
    if (location.hash.slice(1) === fragment()) return;
    params = parse();
    apply();
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    if (!link) return;
    event.preventDefault(); /* the browser would throw the filters away */
    const id = link.getAttribute("href").slice(1);
    set({ at: id });
    goTo(id, "auto");
    document.getElementById(id).tabIndex = -1; /* the keyboard goes on from there */
    document.getElementById(id).focus({ preventScroll: true });
  });
  return { get, list, set, clear, goTo, onApply, apply };
})();
