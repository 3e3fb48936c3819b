// --- one feature -----------------------------------------------------------------------------------------------------

function context(found, top) {
  const line = make("div", { class: "context" }, make("span", { class: "value" }, number(found.activations[found.peak])));
  found.tokens.forEach((token, i) => {
    const text = words[token].replace(/\n/g, "⏎"), value = found.activations[i];
    // The space before a word is left out of the mark, which would otherwise hang at the end of a line.
    const space = text.trim() ? text.length - text.trimStart().length : 0;
    if (i > 0) line.append(text.slice(0, space));
    if (!value && i !== found.peak) return line.append(text.slice(space));
    const title = `${marked(words[token])}  ${number(value)}`;
    const span = make("span", { class: i === found.peak ? "peak" : null, title }, text.slice(space));
    span.style.backgroundColor = `rgba(var(--heat), ${(0.08 + 0.55 * Math.min(value / top, 1)).toFixed(2)})`;
    return line.append(span);
  });
  return line;
}

function effects(title, kind, found) {
  const most = Math.max(...found.map((e) => Math.abs(e.logit)), 1e-9);
  return make("div", { class: kind }, make("h3", {}, title), ...found.map((e) => {
    const mark = make("i");
    mark.style.width = `${(100 * Math.abs(e.logit)) / most}%`;
    return make("div", { class: "effect" }, make("span", { class: "token" }, marked(words[e.token])),
      make("span", {}, e.logit.toFixed(2)), mark);
  }));
}

function histogram(f) {
  const NS = "http://www.w3.org/2000/svg", wide = 460, high = 80, n = f.histogram.length;
  const svg = document.createElementNS(NS, "svg");
  const add = (tag, attributes, text) => {
    const element = document.createElementNS(NS, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    svg.append(element);
    return element;
  };
  const edge = (i) => 2 ** ((f.histogram_from + i) / 4), most = Math.max(...f.histogram), step = Math.min(wide / n, 46);
  svg.setAttribute("viewBox", `0 0 ${wide} ${high + 28}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `Histogram of ${f.uses} activations from ${number(edge(0))} to ${number(edge(n))}`);
  f.histogram.forEach((count, i) => {
    const tall = (high * count) / most;
    const bar = add("rect", { x: i * step + 0.5, y: high - tall, width: Math.max(step - 1, 0.5), height: tall });
    bar.append(document.createElementNS(NS, "title"));
    bar.firstChild.textContent = `${number(edge(i))} to ${number(edge(i + 1))}: ${count} uses`;
  });
  add("line", { x1: 0, y1: high, x2: n * step, y2: high });
  const every = Math.max(Math.ceil(n / Math.max(Math.floor((n * step) / 70), 1)), 1);
  for (let i = 0; i <= n; i += every) {
    const anchor = i * step < 50 ? "start" : i * step > wide - 20 ? "end" : "middle";
    add("text", { x: i * step, y: high + 14, "text-anchor": anchor }, number(edge(i), 2));
  }
  add("text", { x: n * step, y: high + 27, "text-anchor": n * step > 120 ? "end" : "start" }, "activation, log scale");
  return svg;
}

function facts(pairs) {
  return make("dl", { class: "facts" }, ...pairs.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

function table(head, rows, left = 1) {
  const cell = (tag) => (value, i) => make(tag, { class: i >= left ? "n" : null }, value);
  return make("div", { class: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, ...head.map(cell("th")))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map(cell("td")))))));
}

const path = data.model.split("/"); // of a run the last three: its name, time and `model`
const model = path.length > 3 ? `…/${path.slice(-3).join("/")}` : data.model;
const link = (index) => make("a", { href: `#f=${index}` }, String(index));
const chips = (tokens) => tokens.map((text) => make("span", { class: "chip tokens" }, marked(text)));
const back = () => make("button", { id: "back", type: "button", onclick: () => document.body.classList.remove("reading") }, "‹ list");

function featureView(f) {
  const top = f.max || 1;
  const home = f.community === null ? "none" : make("a", { href: `#c=${f.community}` }, `community ${f.community}`);
  const left = make("section", {}, make("h3", {}, "Strongest uses"),
    f.strongest.length ? null : make("p", { class: "note" }, "Not used at any token of this text."),
    ...f.strongest.map((c) => context(c, top)),
    f.random.length ? make("h3", {}, "Uses drawn at random") : null, ...f.random.map((c) => context(c, top)));
  const preferences = Object.entries(f.preferences).filter(([, p]) => p.prefers !== null)
    .map(([family, p]) => [family, p.prefers, p.share === null ? "–" : percent(p.share), `${number(p.lift, 2)}×`,
      p.si === null ? "–" : fixed(p.si, 3)]);
  const right = make("section", {},
    f.promoted.length ? make("div", { class: "effects" }, effects("Promotes", "up", f.promoted),
      effects("Suppresses", "down", f.suppressed)) : null,
    f.promoted.length ? make("p", { class: "note" }, "Logits per unit of activation, direct path.") : null,
    f.uses ? make("h3", {}, `Activations of ${f.uses.toLocaleString("en")} ${f.uses === 1 ? "use" : "uses"}`) : null, f.uses ? histogram(f) : null,
    preferences.length ? make("h3", {}, "What its use tells about the word") : null,
    preferences.length ? table(["labels", "prefers", "share", "lift", "SI"], preferences, 2) : null,
    f.pathways.length ? make("h3", {}, "Pathways that write it") : null,
    f.pathways.length ? table(["layer", "pathway", "part of its rise", "chosen"], f.pathways.map((c) =>
      [`L${c.layer}`, make("a", { href: `#p=${c.layer}.${c.pathway}` }, `p${c.pathway}`), percent(c.part), `${number(c.lift, 2)}×`])) : null,
    Object.keys(f.sources).length ? make("h3", {}, "Where it writes") : null,
    Object.keys(f.sources).length ? table(["site", "share of its decoder's norm"], Object.entries(f.sources).map(([site, share]) =>
      [site, percent(share)])) : null,
    make("h3", {}, "Nearest decoder directions"),
    table(["feature", "strongest at", "cosine"], f.neighbours.map((n) =>
      [link(n.feature), make("span", {}, ...chips(summaries[n.feature].tokens.slice(0, 4))), n.cosine.toFixed(2)]), 2));
  return [make("div", { class: "bar" }, back(), make("h2", {}, `Feature ${f.index}`),
    make("button", { type: "button", onclick: () => move(-1), title: "Previous in the list (k)" }, "‹ previous"),
    make("button", { type: "button", onclick: () => move(1), title: "Next in the list (j)" }, "next ›")),
    facts([["density", percent(f.density)], ["uses", f.uses.toLocaleString("en")], ["mean activation", number(f.mean)],
      ["max", number(f.max)], ["used together with", home]]),
    make("div", { class: "columns" }, left, right)];
}

function communityView(c) {
  const members = features.filter((f) => f.community === c.index).sort((a, b) => b.uses - a.uses);
  return [make("div", { class: "bar" }, back(), make("h2", {}, `Community ${c.index}`),
    make("button", { type: "button", onclick: () => { $("community").value = String(c.index); filter();
      document.body.classList.remove("reading"); } }, "show in the list")),
    facts([["features", String(c.size)], ["uses", c.uses.toLocaleString("en")]]),
    make("h3", {}, "Tokens that tell it from the others"), make("p", {}, ...chips(c.tokens.map((t) => words[t]))),
    make("h3", {}, members.length > 200 ? "Its 200 most used features" : "Its features"),
    table(["feature", "strongest at", "density", "SI"], members.slice(0, 200).map((f) => [link(f.index),
      make("span", {}, ...chips(summaries[f.index].tokens.slice(0, 4))), percent(f.density),
      summaries[f.index].family ? siOf(f, summaries[f.index].family).toFixed(3) : "–"]), 2)];
}

function pathwayView(layer, p) {
  return [make("div", { class: "bar" }, back(), make("h2", {}, `Layer ${layer.layer}, pathway ${p.index}`)),
    facts([["chosen at", `${percent(p.load)} of tokens`], ["writes", `${p.n_features} features`]]),
    make("p", { class: "note" }, "It writes a feature if of the layer's pathways it brings most of the rise of the feature's "
      + "pre-activation at its uses over the mean, directly, and more than with its outputs shuffled among tokens."),
    table(["feature", "strongest at", "part of its rise", "density"], p.features.map((i) => [link(i),
      make("span", {}, ...chips(summaries[i].tokens.slice(0, 4))),
      percent(features[i].pathways.find((c) => c.layer === layer.layer).part), percent(features[i].density)]), 2)];
}

function pathways() {
  return data.layers.flatMap((layer) => [make("h3", {}, `Pathways of layer ${layer.layer}`),
    make("p", { class: "note" }, `Features gather in one pathway: ${layer.concentration.toFixed(3)} (1: one pathway alone moves each feature); `
      + `random groups of the same neurons ${layer.null_mean.toFixed(3)}.`),
    table(["pathway", "its features are strongest at", "writes", "chosen"], layer.pathways.map((p) =>
      [make("a", { href: `#p=${layer.layer}.${p.index}` }, `p${p.index}`),
        make("span", {}, ...chips([...new Set(p.features.map((i) => summaries[i].tokens[0]))].slice(0, 6))),
        String(p.n_features), percent(p.load)]), 2)]);
}

function writers() {
  if (!data.writers.length) return [];
  return [make("h3", {}, data.versus === null ? "Where features write" : "What only one model has"),
    make("p", { class: "note" }, "Used features by the share of their decoder's norm at each, sources at equal scale. "
      + `Only here: at least .9 of it.${data.versus === null ? "" : ` Second model: ${data.versus}.`}`),
    table(["", "only here, strongest at", ...data.writers[0].histogram.map((_, i) => `${i / 10} to ${(i + 1) / 10}`), "only here"],
      data.writers.map((w) => [w.name, make("span", {}, ...w.features.flatMap((i) => [link(i), " ", ...chips(summaries[i].tokens.slice(0, 1))])),
        ...w.histogram.map(String), String(w.n_features)]), 2)];
}

function overview() {
  const g = data.graph, between = (e) => (e.low === null ? "" : ` [${e.low.toFixed(3)}, ${e.high.toFixed(3)}]`);
  const place = data.site === data.target ? data.site : `${data.site} to ${data.target}`;
  return [make("div", { class: "bar" }, back(), make("h2", {}, "All features")),
    facts([["model", model], ["site", place], ["coder", data.kind], ["features", `${data.d_sae - data.dead} used of ${data.d_sae}`],
      ["features a token", data.l0.toFixed(1)], ["text", `${data.tokens.toLocaleString("en")} tokens of ${data.corpus}`]]),
    make("h3", {}, "What features tell about the word"),
    make("p", { class: "note" }, "SI: adjusted mutual information of one use and the word's class; 0 is what permuted labels give, "
      + "which is subtracted, 1 a use that tells the class for certain. 95 % interval over documents. A feature tells something if fewer than one of all features would tell as much under permuted labels in 95 % of texts."),
    table(["labels", "SI", "ceiling", "features that tell something", "labelled tokens"],
      Object.entries(data.families).map(([name, f]) => [name, f.si.value === null ? "–" : f.si.value.toFixed(3) + between(f.si),
        number(f.si.ceiling, 2), String(f.significant), percent(f.coverage)])),
    ...(g ? [make("h3", {}, "Features used together"),
      make("p", { class: "note" }, `Leiden communities of the positive co-activation graph of ${g.features} features at ${g.tokens} tokens. `
        + `Q ${g.q.toFixed(3)}${between(g)}; with each feature's tokens shuffled ${g.null_mean.toFixed(3)}; `
        + `agreement of three seeds ${g.stability.toFixed(2)}.`),
      table(["community", "tokens that tell it from the others", "features", "uses"], g.communities.map((c) =>
        [make("a", { href: `#c=${c.index}` }, String(c.index)), make("span", {}, ...chips(c.tokens.map((t) => words[t]))),
          String(c.size), c.uses.toLocaleString("en")]), 2)] : []),
    ...writers(),
    ...pathways(),
    make("h3", {}, "Logit effects"), make("p", { class: "note" }, data.logits),
    make("h3", {}, "Keys"),
    make("p", { class: "note" }, ...[["/", "search"], ["j", ""], ["k", "next, previous feature"], ["o", "this page"], ["t", "light or dark"], ["Esc", "leave the search"]]
      .flatMap(([key, what]) => [make("kbd", {}, key), ` ${what} ${what ? " · " : ""}`]))];
}

// --- navigation ------------------------------------------------------------------------------------------------------

function route() {
  const [kind, value = ""] = location.hash.slice(1).split("="), id = Number(value);
  const [layer, p] = value.split(".").map(Number), routed = kind === "p" && data.layers.find((l) => l.layer === layer);
  selected = kind === "f" && features[id] ? id : null;
  const view = selected !== null ? featureView(features[id])
    : routed && routed.pathways[p] ? pathwayView(routed, routed.pathways[p])
    : kind === "c" && communities.has(id) ? communityView(communities.get(id)) : overview();
  $("view").replaceChildren(...view.filter((part) => part !== null));
  $("view").scrollTop = 0;
  document.body.classList.toggle("reading", location.hash.length > 1);
  reveal();
}

function keys(event) {
  const typing = event.target.matches("input, select, textarea");
  if (event.key === "Escape" && typing) return event.target.blur();
  if (event.ctrlKey || event.metaKey || event.altKey) return undefined;
  const arrows = event.target === $("query") || event.target === $("list") || event.target === document.body;
  const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
  if (arrows && event.key in steps && !(typing && ["Home", "End"].includes(event.key))) {
    event.preventDefault();
    return move(steps[event.key]);
  }
  if (typing) return undefined;
  const actions = { "/": () => { document.body.classList.remove("reading"); $("query").focus(); }, j: () => move(1), k: () => move(-1),
    o: () => { location.hash = "overview"; }, t: theme };
  if (actions[event.key]) {
    event.preventDefault();
    actions[event.key]();
  }
  return undefined;
}

function theme() {
  const root = document.documentElement;
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* a file:// page may have no storage */ }
}

function start() {
  let stored = null;
  try { stored = localStorage.getItem("theme"); } catch { /* as above */ }
  const dark = matchMedia("(prefers-color-scheme: dark)");
  document.documentElement.dataset.theme = stored || (dark.matches ? "dark" : "light");
  if (!stored) dark.addEventListener("change", () => { document.documentElement.dataset.theme = dark.matches ? "dark" : "light"; });
  $("home").textContent = `Features of ${data.site}`;
  $("subtitle").textContent = `${model} · ${data.kind}, ${data.d_sae} latents · ${data.tokens.toLocaleString("en")} tokens of ${data.corpus}`;
  $("sort").append(...Object.keys(SORTS).map((name) => make("option", {}, name)));
  $("sort").value = "SI";
  $("community").append(...[...communities.values()].map((c) =>
    make("option", { value: c.index }, `${c.index}: ${c.tokens.slice(0, 3).map((t) => words[t].trim()).join(" ")} (${c.size})`)));
  let waiting = 0;
  $("query").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 80); });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["scope", "sort", "community"]) $(id).addEventListener("change", filter);
  $("reverse").addEventListener("click", () => { reversed = !reversed; $("reverse").textContent = reversed ? "↑" : "↓"; filter(); });
  $("theme").addEventListener("click", theme);
  $("list").addEventListener("scroll", draw, { passive: true });
  addEventListener("resize", draw);
  addEventListener("hashchange", route);
  addEventListener("keydown", keys);
  filter();
  route();
  requestAnimationFrame(() => setTimeout(() => { document.documentElement.dataset.ready = performance.now().toFixed(0); }));
}
start();
