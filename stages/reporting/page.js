"use strict";
// The page is whole without this script: it only sorts the leaderboard and filters the answers.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const headings = [...table.querySelectorAll("thead th")];
  headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
    const descending = heading.getAttribute("aria-sort") === "none" ? column > 0 : heading.getAttribute("aria-sort") === "ascending";
    for (const other of headings) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const value = row => row.children[column].dataset.value;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");  // what has no figure stays last
      const order = column === 0 ? (x < y ? -1 : 1) : x - y;
      return descending ? -order : order;
    });
    table.tBodies[0].append(...rows);
  }));
}

const form = document.querySelector(".filters");
const rows = [...document.querySelectorAll(".answers tbody tr")];
const words = rows.map(row => [...row.querySelectorAll(".text")].map(cell => cell.textContent).join("\n").toLowerCase());
const count = document.querySelector(".count");
const more = document.querySelector(".more button");
const PAGE = 100;
let limit = PAGE;

function filter() {
  const wanted = Object.fromEntries(new FormData(form));
  const text = wanted.text.trim().toLowerCase();
  delete wanted.text;
  let found = 0;
  rows.forEach((row, i) => {
    const fits = Object.entries(wanted).every(([key, value]) => !value || row.dataset[key] === value) && words[i].includes(text);
    found += fits;
    row.hidden = !fits || found > limit;
  });
  const shown = Math.min(found, limit);
  count.textContent = found ? `${found.toLocaleString("en")} match${found === 1 ? "es" : ""}` + (shown < found ? `, the first ${shown} shown` : "") : "No answer matches; clear a filter.";
  more.hidden = shown === found;
}

form.hidden = false;
form.addEventListener("submit", event => event.preventDefault());
form.addEventListener("input", () => { limit = PAGE; filter(); });
form.addEventListener("reset", () => { limit = PAGE; setTimeout(filter); });
more.addEventListener("click", () => {
  const next = rows.filter(row => !row.hidden).length;
  limit += PAGE;
  filter();
  const first = rows.filter(row => !row.hidden)[next];  // the keyboard goes on where the new rows begin
  if (first) { first.tabIndex = -1; first.focus({ preventScroll: true }); }
});
filter();
