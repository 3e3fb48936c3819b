"use strict";
// Every text from the data is set through textContent: a token may be anything, `<script>` included.
const data = JSON.parse(document.getElementById("data").textContent);
const words = data.vocabulary, features = data.features, ROW = 52;
const $ = (id) => document.getElementById(id);
const families = Object.keys(data.families);
const communities = new Map((data.graph ? data.graph.communities : []).map((c) => [c.index, c]));

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined) continue;
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
const number = (x, digits = 3) => {
  if (x === null || x === undefined) return "–";
  return Math.abs(x) >= 10 ** digits ? Math.round(x).toLocaleString("en") : Number(x).toPrecision(digits);
};
const fixed = (x, digits) => x.toFixed(digits).replace(/^-(?=[0.]*$)/, "");
const percent = (x) => `${x === 0 ? 0 : Number((100 * x).toPrecision(2))}\u00a0%`;
// A token in a list shows its whitespace; in a context only what would break the line.
const marked = (text) => text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍") || "(empty)";

// --- what is derived from the data ---------------------------------------------------------------------------------

function bestFamily(feature) {
  let best = null;
  for (const [family, p] of Object.entries(feature.preferences)) {
    if (p.si !== null && p.z !== null && (best === null || p.si > feature.preferences[best].si)) best = family;
  }
  return best;
}
function peakTokens(feature) {
  const counts = new Map();
  for (const c of feature.strongest) counts.set(c.tokens[c.peak], (counts.get(c.tokens[c.peak]) || 0) + 1);
  return [...counts.entries()].sort((a, b) => b[1] - a[1]).map(([token]) => words[token]);
}
const summaries = features.map((feature) => ({ family: bestFamily(feature), tokens: peakTokens(feature) }));
const siOf = (feature, family) => (family && feature.preferences[family] ? feature.preferences[family].si : null);
const SORTS = {
  "density": (f) => f.density,
  "max activation": (f) => f.max,
  "mean activation": (f) => f.mean,
  "SI": (f) => siOf(f, summaries[f.index].family),
  ...Object.fromEntries(families.map((family) => [`SI ${family}`, (f) => siOf(f, family)])),
  "community": (f) => (f.community === null ? null : -f.community),
  "strongest logit": (f) => (f.promoted.length ? f.promoted[0].logit : null),
  "nearest neighbour": (f) => (f.neighbours.length ? f.neighbours[0].cosine : null),
  "index": (f) => -f.index,
};

let searchable = null; // scope → lower-case text of every feature, made at the first search
function texts(scope) {
  if (searchable === null) searchable = {};
  if (!searchable[scope]) {
    const of = {
      tokens: (f) => summaries[f.index].tokens.join("\n"),
      contexts: (f) => [...f.strongest, ...f.random].map((c) => c.tokens.map((t) => words[t]).join("")).join("\n"),
      promoted: (f) => f.promoted.map((e) => words[e.token]).join("\n"),
      classes: (f) => Object.values(f.preferences).map((p) => p.prefers).join("\n"),
    };
    of.all = (f) => Object.entries(of).filter(([name]) => name !== "all").map(([, text]) => text(f)).join("\n");
    searchable[scope] = features.map((f) => of[scope](f).toLowerCase());
  }
  return searchable[scope];
}

// --- the list --------------------------------------------------------------------------------------------------------

let shown = features, selected = null, reversed = false;

function filter() {
  const query = $("query").value.toLowerCase(), community = $("community").value;
  const key = SORTS[$("sort").value];
  const index = /^#?\d+$/.test(query.trim()) ? Number(query.trim().replace("#", "")) : null;
  const text = query && index === null ? texts($("scope").value) : null;
  shown = features.filter((f) =>
    (index === null || f.index === index || String(f.index).startsWith(String(index))) &&
    (text === null || text[f.index].includes(query)) &&
    (community === "" || String(f.community) === community));
  const sign = reversed ? -1 : 1;
  shown = shown.map((f) => [key(f), f]).sort(([a, f], [b, g]) => {
    if (a === null || b === null) return (a === null) - (b === null) || f.index - g.index; // unknown values last
    return sign * (b - a) || f.index - g.index;
  }).map(([, f]) => f);
  $("count").textContent = shown.length === features.length
    ? `${features.length} features, ${data.dead} never used in this text`
    : `${shown.length} of ${features.length} features`;
  $("rows").style.height = `${shown.length * ROW}px`;
  $("list").scrollTop = 0;
  draw();
}

function draw() {
  // Only the rows in view exist: a list of 100,000 features opens as fast as one of 100.
  const list = $("list"), first = Math.max(Math.floor(list.scrollTop / ROW) - 4, 0);
  const last = Math.min(first + Math.ceil(list.clientHeight / ROW) + 8, shown.length);
  $("rows").replaceChildren(...shown.slice(first, last).map((f, i) => row(f, first + i)));
  if (selected !== null) list.setAttribute("aria-activedescendant", `row-${selected}`);
}

function row(f, place) {
  const { family, tokens } = summaries[f.index], p = family && f.preferences[family];
  const element = make("div", { class: "row", role: "option", id: `row-${f.index}`, "aria-selected": f.index === selected,
    "aria-posinset": place + 1, "aria-setsize": shown.length, onclick: () => open(f.index) },
    make("div", {}, make("span", { class: "number" }, String(f.index)),
      make("span", { class: "tokens" }, tokens.length ? tokens.slice(0, 6).map(marked).join("  ") : "never used")),
    make("div", { class: "small" },
      make("span", {}, p && p.prefers ? `${family}: ${p.prefers} ${number(p.lift, 2)}×` : " "),
      make("span", {}, `SI ${p ? fixed(p.si, 3) : "–"}`), make("span", {}, percent(f.density)),
      make("span", {}, `max ${number(f.max)}`)));
  element.style.top = `${place * ROW}px`;
  return element;
}

function open(index) { location.hash = `f=${index}`; }

function move(step) {
  if (!shown.length) return;
  const at = shown.findIndex((f) => f.index === selected);
  const next = at < 0 ? 0 : Math.min(Math.max(at + step, 0), shown.length - 1);
  open(shown[next].index);
}

function reveal() {
  const at = shown.findIndex((f) => f.index === selected), list = $("list");
  if (at >= 0 && (at * ROW < list.scrollTop || (at + 1) * ROW > list.scrollTop + list.clientHeight)) {
    list.scrollTop = at * ROW - list.clientHeight / 2;
  }
  draw();
}
