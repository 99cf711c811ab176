"use strict";
/* What a page does in a browser: draws its charts, offers their data, filters entries, and remembers the reader's view. */

const stored = (storage, name, value) => {
  try {  // a browser may forbid pages from a file to store anything
    return value === undefined ? storage()[name] : (storage()[name] = value);
  } catch { return undefined; }
};

/* The colour scheme (scheme.js). Without a choice, it is that of the system. */
const chooser = document.getElementById("scheme");
chooser.value = document.documentElement.dataset.scheme ?? "";
if (chooser.selectedIndex < 0) chooser.value = "";
chooser.addEventListener("change", () => {
  document.documentElement.dataset.scheme = chooser.value;
  stored(() => localStorage, "scheme", chooser.value);
});

/* The data of a chart as CSV. Cells that a spreadsheet would compute are marked as text. */
const cell = value => {
  if (typeof value === "number") return String(value);
  const text = value === null || value === undefined ? "" : String(value);
  const safe = /^[=+\-@\t\r]/.test(text) ? "'" + text : text;
  return /[",\n\r]/.test(safe) ? '"' + safe.replaceAll('"', '""') + '"' : safe;
};
const csv = specification => {
  // A row with a single field is the place of a mark, such as a line at 0, and no data.
  const values = (specification.data ?? []).flatMap(source => source.values ?? []);
  const rows = values.filter(row => Object.keys(row).length > 1);
  const names = [...new Set(rows.flatMap(Object.keys))];
  return [names, ...rows.map(row => names.map(name => row[name]))].map(row => row.map(cell).join(",") + "\r\n").join("");
};
const specificationOf = id => JSON.parse(document.getElementById(id).textContent);
for (const button of document.querySelectorAll("button[data-of]")) {
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv(specificationOf(button.dataset.of))], { type: "text/csv" }));
    link.download = button.dataset.of.replace(/-data$/, ".csv");
    link.click();  // the URL stays valid, because nothing tells when the browser has read it
  });
}

/* Entries: a filter, and those that the reader has opened, which stay open if the page reloads itself. */
for (const filter of document.querySelectorAll("input[data-filters]")) {
  const entries = document.querySelectorAll("#" + filter.dataset.filters + " details");
  filter.addEventListener("input", () => {
    const wanted = filter.value.toLowerCase();
    for (const entry of entries) entry.hidden = !entry.textContent.toLowerCase().includes(wanted);
  });
}
const opened = new Set((stored(() => sessionStorage, "opened") ?? "").split("\n"));
for (const entry of document.querySelectorAll("details")) {
  const name = entry.querySelector("summary").textContent.replace(/\s+/g, " ");
  entry.open = opened.has(name);
  entry.addEventListener("toggle", () => {
    opened[entry.open ? "add" : "delete"](name);
    stored(() => sessionStorage, "opened", [...opened].join("\n"));
  });
}

/* The table of contents marks the section that is read: the last one that begins in the upper third of the window. */
const links = [...document.querySelectorAll("nav a")];
const markSection = () => {
  const begun = links.filter(link => document.querySelector(link.hash).getBoundingClientRect().top < innerHeight / 3);
  const current = begun.at(-1) ?? links[0];
  if (current.hasAttribute("aria-current")) return;
  for (const link of links) link.removeAttribute("aria-current");
  current.setAttribute("aria-current", "location");
  current.parentElement.scrollLeft = current.offsetLeft - 16;  // on a phone, the links are one line
};
if (links.length) {
  addEventListener("scroll", markSection, { passive: true });
  markSection();
}

/* Draws the charts one by one from the top, so that the text can be read and scrolled meanwhile. The browser tests wait
   for the mark "drawn". */
(async () => {
  for (const place of document.querySelectorAll(".chart")) {
    await new Promise(resolve => setTimeout(resolve));
    await vegaEmbed(place, specificationOf(place.dataset.of), { actions: false, renderer: "svg" })
      .catch(error => { place.textContent = "This chart could not be drawn: " + error; console.error(error); });
  }
  performance.mark("drawn");
})();
