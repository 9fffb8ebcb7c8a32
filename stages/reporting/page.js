"use strict";
// Draws the table of answers and sorts the leaderboard; the rest of the page works without it.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const headings = [...table.querySelectorAll("thead th")];
  const sort = (heading, column) => {
    const current = heading.getAttribute("aria-sort");
    const descending = current === "none" ? column > 0 : current === "ascending";
    for (const other of headings) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const value = row => row.children[column].dataset.value;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");  // rows without a figure stay last
      const order = column === 0 ? (x < y ? -1 : 1) : x - y;
      return descending ? -order : order;
    });
    table.tBodies[0].append(...rows);
  };
  headings.forEach((heading, column) =>
    heading.querySelector("button").addEventListener("click", () => sort(heading, column)));
}

const read = id => JSON.parse(document.getElementById(id).textContent);
const { columns, rows } = read("answers-data");  // a row holds an index into each column
const { outcomes, colours } = read("outcomes-data");
const place = Object.fromEntries(Object.keys(columns).map((key, i) => [key, i]));
const spaced = text => text.replaceAll("_", " ");
const lower = Object.fromEntries(["prompt", "answer"].map(
  key => [key, columns[key].map(text => text.toLowerCase())]));
const form = document.querySelector(".filters");
const table = document.querySelector(".answers");
const template = document.getElementById("answer-row").content.firstElementChild;
const count = document.querySelector(".count");
const more = document.querySelector(".more button");
const PAGE = 100;
let matches = rows;

function rowElement(row) {
  const element = template.cloneNode(true);
  const fill = (slot, text) => {
    const node = element.querySelector(`[data-slot="${slot}"]`);
    if (text) node.textContent = text; else node.remove();
  };
  const of = key => columns[key][row[place[key]]];
  const [kind, sign, meaning] = outcomes[of("outcome")];
  element.querySelector(".key").classList.add(colours[of("candidate")]);
  element.querySelector(".outcome").classList.add(kind);
  element.querySelector(".outcome").title = meaning;
  if (of("why")) element.querySelector('[data-slot="answer"]').classList.add("withheld");
  fill("candidate", of("candidate"));
  fill("intent", spaced(of("intent")));
  fill("kind", `${of("intent_kind")} · ${of("representation")}`);
  fill("expected", `should ${of("expected")}`);
  fill("prompt", of("prompt"));
  fill("answer", of("answer"));
  fill("why", of("why") && `gate: ${of("why")}`);
  fill("outcome", `${sign} ${spaced(of("outcome"))}`);
  const evidence = of("evidence") ? `: “${of("evidence")}”` : "";
  fill("decided", `by ${spaced(of("decided_by"))}${evidence}`);
  fill("reasoning", of("reasoning") && `reasoning: ${spaced(of("reasoning"))}`);
  fill("paper", of("paper") && `paper’s judge: ${of("paper")}`);
  return element;
}

function summary(shown) {
  if (!matches.length) return "No answer matches; clear a filter.";
  const total = matches.length.toLocaleString("en");
  const text = matches.length === 1 ? `${total} match` : `${total} matches`;
  return shown < matches.length ? `${text}, the first ${shown.toLocaleString("en")} shown` : text;
}

function show(from) {
  table.tBodies[0].append(...matches.slice(from, from + PAGE).map(rowElement));
  const shown = Math.min(matches.length, from + PAGE);
  count.textContent = summary(shown);
  more.hidden = shown === matches.length;
  table.hidden = !matches.length;
}

function filter() {
  const { text: typed, ...selected } = Object.fromEntries(new FormData(form));
  const text = typed.trim().toLowerCase();
  const hits = Object.fromEntries(Object.entries(lower).map(
    ([key, texts]) => [key, texts.map(value => value.includes(text))]));
  const exact = Object.entries(selected).filter(([, value]) => value).map(
    ([key, value]) => [place[key], columns[key].indexOf(value)]);
  matches = rows.filter(row => exact.every(([column, index]) => row[column] === index)
    && (hits.prompt[row[place.prompt]] || hits.answer[row[place.answer]]));
  table.tBodies[0].replaceChildren();
  show(0);
}

form.hidden = false;
form.addEventListener("submit", event => event.preventDefault());
form.addEventListener("input", filter);
form.addEventListener("reset", () => setTimeout(filter));
more.addEventListener("click", () => {
  const next = table.tBodies[0].rows.length;
  show(next);
  const first = table.tBodies[0].rows[next];  // the keyboard continues at the first new row
  first.tabIndex = -1;
  first.focus({ preventScroll: true });
});
filter();

// A printout can't be unfolded, so everything is open on it.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const details of folded) details.open = true;
});
addEventListener("afterprint", () => { for (const details of folded) details.open = false; });
