"use strict";
// Everything on the page can be read without this: it turns the colours, walks with the arrow keys, and saves the JSON.

const root = document.documentElement;
document.getElementById("theme").addEventListener("click", () => {
  const prefersDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : prefersDark;
  root.dataset.theme = isDark ? "light" : "dark";
});

for (const strip of document.querySelectorAll(".bars ol")) {
  const requests = [...strip.children];
  const enter = (request) => {
    for (const other of requests) other.tabIndex = other === request ? 0 : -1;
    request.focus();
  };
  requests.slice(1).forEach((request) => { request.tabIndex = -1; });  // a strip is one stop of the tabulator
  strip.addEventListener("keydown", (event) => {
    const index = requests.indexOf(document.activeElement);
    const last = requests.length - 1;
    const next = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape") document.activeElement.blur();
    if (index < 0 || next === undefined) return;
    event.preventDefault();
    enter(requests[Math.min(Math.max(next, 0), last)]);
  });
  strip.addEventListener("click", (event) => {
    const request = event.target.closest(".request");
    if (request) enter(request);
  });
}

document.getElementById("download").addEventListener("click", (event) => {
  const blob = new Blob([document.getElementById("results").textContent], { type: "application/json" });
  const link = event.currentTarget;
  link.href = URL.createObjectURL(blob);
  setTimeout(() => { URL.revokeObjectURL(link.href); link.href = "#results"; }, 10000);
});

addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) {
    details.open = true;
    details.dataset.printed = "";
  }
});
addEventListener("afterprint", () => {
  for (const details of document.querySelectorAll("details[data-printed]")) {
    details.open = false;
    delete details.dataset.printed;
  }
});
