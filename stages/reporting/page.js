"use strict";
// Without this script the page lacks only its table of all answers, which is made here, and the sorting of the leaderboard.
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

const read = id => JSON.parse(document.getElementById(id).textContent);
const { columns, rows } = read("answers-data");  // rows hold places in columns
const { outcomes, colours } = read("outcomes-data");
const place = Object.fromEntries(Object.keys(columns).map((key, i) => [key, i]));
const value = (row, key) => columns[key][row[place[key]]];
const spaced = text => text.replaceAll("_", " ");
const lower = Object.fromEntries(["prompt", "answer"].map(key => [key, columns[key].map(text => text.toLowerCase())]));
const form = document.querySelector(".filters");
const table = document.querySelector(".answers");
const pattern = document.getElementById("answer-row").content.firstElementChild;
const count = document.querySelector(".count");
const more = document.querySelector(".more button");
const PAGE = 100;
let found = rows;

function drawn(row) {
  const line = pattern.cloneNode(true);
  const put = (slot, text) => {
    const at = line.querySelector(`[data-slot="${slot}"]`);
    if (text) at.textContent = text; else at.remove();
  };
  const of = key => value(row, key);
  const [kind, sign, meaning] = outcomes[of("outcome")];
  line.querySelector(".key").classList.add(colours[of("candidate")]);
  line.querySelector(".outcome").classList.add(kind);
  line.querySelector(".outcome").title = meaning;
  if (of("why")) line.querySelector('[data-slot="answer"]').classList.add("withheld");
  put("candidate", of("candidate"));
  put("intent", spaced(of("intent")));
  put("kind", `${of("intent_kind")} · ${of("representation")}`);
  put("expected", `should ${of("expected")}`);
  put("prompt", of("prompt"));
  put("answer", of("answer"));
  put("why", of("why") && `gate: ${of("why")}`);
  put("outcome", `${sign} ${spaced(of("outcome"))}`);
  put("decided", `by ${spaced(of("decided_by"))}` + (of("evidence") ? `: “${of("evidence")}”` : ""));
  put("reasoning", of("reasoning") && `reasoning: ${spaced(of("reasoning"))}`);
  put("paper", of("paper") && `paper’s judge: ${of("paper")}`);
  return line;
}

function show(from) {
  table.tBodies[0].append(...found.slice(from, from + PAGE).map(drawn));
  const shown = Math.min(found.length, from + PAGE);
  count.textContent = found.length ? `${found.length.toLocaleString("en")} match${found.length === 1 ? "es" : ""}` + (shown < found.length ? `, the first ${shown.toLocaleString("en")} shown` : "") : "No answer matches; clear a filter.";
  more.hidden = shown === found.length;
  table.hidden = !found.length;
}

function filter() {
  const { text: typed, ...wanted } = Object.fromEntries(new FormData(form));
  const text = typed.trim().toLowerCase();
  const hits = Object.fromEntries(Object.entries(lower).map(([key, texts]) => [key, texts.map(one => one.includes(text))]));
  const exact = Object.entries(wanted).filter(([, wish]) => wish).map(([key, wish]) => [place[key], columns[key].indexOf(wish)]);
  found = rows.filter(row => exact.every(([at, wish]) => row[at] === wish) && (hits.prompt[row[place.prompt]] || hits.answer[row[place.answer]]));
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
  const first = table.tBodies[0].rows[next];  // the keyboard goes on where the new rows begin
  first.tabIndex = -1;
  first.focus({ preventScroll: true });
});
filter();

// On paper nothing can be unfolded.
let folded = [];
addEventListener("beforeprint", () => { folded = [...document.querySelectorAll("details:not([open])")]; for (const one of folded) one.open = true; });
addEventListener("afterprint", () => { for (const one of folded) one.open = false; });
