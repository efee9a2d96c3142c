"use strict";
const historyMs = 5 * 60 * 1000, feedRows = 60, freshRows = 24, freshMax = 500, freshMs = 5 * 60 * 1000, quietMs = 10000;
const kindOrder = ["temperature", "air_quality", "traffic", "noise", "parking", "lighting"];
const byId = (id) => document.getElementById(id);
const svgNamespace = "http://www.w3.org/2000/svg";

let language = pickLanguage();
let series = new Map();  // "zone\nkind" -> {zone, kind, unit, points: Map(time -> point), last}
let cards = new Map();   // zone -> {root, rows: Map(kind -> elements), fresh: []}
let feed = [];           // newest first
let total = 0, rates = [], lastReading = 0, clockOffset = 0, state = "connecting";

function pickLanguage() {
  const asked = new URLSearchParams(location.search).get("lang") || localStorage.getItem("lang") || navigator.language || "en";
  return asked.toLowerCase().startsWith("fr") ? "fr" : "en";
}
function word(key, values) {
  return words[language][key].replace(/\{(\w+)\}/g, (_, k) => values[k]);
}
const zoneName = (z) => words[language].zones[z] || z;
const kindName = (k) => words[language].kinds[k] || k;
function number(v) {
  const digits = Math.abs(v) >= 1000 ? 0 : Math.abs(v) >= 100 ? 1 : 2;
  return new Intl.NumberFormat(language, { maximumFractionDigits: digits }).format(v);
}
function quantity(v, unit) {
  const u = unit in units ? units[unit] : unit;
  return u ? number(v) + "\u00a0" + u : number(v);
}
function clock(ms) {
  return new Intl.DateTimeFormat(language, { hour: "2-digit", minute: "2-digit", second: "2-digit" }).format(ms);
}
function element(tag, className, text) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  if (text !== undefined) e.textContent = text;
  return e;
}

function setLanguage(l) {
  language = l;
  localStorage.setItem("lang", l);
  document.documentElement.lang = l;
  document.title = word("title") + " – Sluice";
  for (const e of document.querySelectorAll("[data-word]")) e.textContent = word(e.dataset.word);
  for (const b of document.querySelectorAll("button[data-lang]")) b.setAttribute("aria-pressed", String(b.dataset.lang === l));
  draw();
}

function take(f, whole) {
  clockOffset = Date.now() - f.now;
  if (whole) { series = new Map(); feed = []; rates = []; }
  rates.push([f.now, f.total]);
  while (rates.length > 2 && rates[0][0] < f.now - 5000) rates.shift();
  total = f.total;
  byId("devices").textContent = new Intl.NumberFormat(language).format(f.devices);
  for (const s of f.series) addPoints(s, f.now);
  for (const r of f.latest) addReading(r, whole);
  if (f.latest.length) lastReading = Date.now();
  draw();
}
function addPoints(s, now) {
  const key = s.z + "\n" + s.k;
  let e = series.get(key);
  if (!e) series.set(key, e = { zone: s.z, kind: s.k, unit: s.u, points: new Map(), last: null });
  e.unit = s.u;
  for (const p of s.p) e.points.set(p.t, p);
  for (const t of e.points.keys()) if (t < now - historyMs) e.points.delete(t);
}
function addReading(r, whole) {
  const e = series.get(r.z + "\n" + r.k);
  if (e) e.last = r;
  feed.unshift(r);
  if (feed.length > 4000) feed.length = 2000;
  if (whole) return;
  const c = card(r.z), known = c.fresh.find((d) => d.k === r.k && d.d === r.d);
  if (!known && !r.f) return;
  // Whoever spoke last comes first: in a city that has just begun everybody is new.
  const entry = { k: r.k, d: r.d, since: known ? known.since : Date.now(), latest: r };
  c.fresh = [entry, ...c.fresh.filter((d) => d !== known)].slice(0, freshMax);
}

function card(zone) {
  let c = cards.get(zone);
  if (c) return c;
  const root = element("article", "zone");
  root.dataset.zone = zone;
  c = { root, title: element("h2"), rows: new Map(), fresh: [], freshList: element("ul", "fresh") };
  root.append(c.title, c.freshList);
  cards.set(zone, c);
  const after = [...cards.keys()].sort();
  byId("zones").replaceChildren(...after.map((z) => cards.get(z).root));
  return c;
}
function row(c, zone, kind) {
  let r = c.rows.get(kind);
  if (r) return r;
  const root = element("div", "measure");
  root.dataset.kind = kind;
  const svg = document.createElementNS(svgNamespace, "svg");
  svg.setAttribute("viewBox", "0 0 200 40");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  const band = document.createElementNS(svgNamespace, "path"), line = document.createElementNS(svgNamespace, "path");
  band.setAttribute("class", "band");
  line.setAttribute("class", "line");
  svg.append(band, line);
  r = { root, svg, band, line, name: element("h3"), average: element("span", "average"), last: element("span", "last") };
  const figures = element("p");
  figures.append(r.average, r.last);
  root.append(r.name, svg, figures);
  c.rows.set(kind, r);
  const place = (k) => (kindOrder.indexOf(k) + 100) % 100;
  for (const k of [...c.rows.keys()].sort((a, b) => place(a) - place(b) || a.localeCompare(b))) c.root.insertBefore(c.rows.get(k).root, c.freshList);
  return r;
}

function draw() {
  byId("empty").hidden = series.size > 0;
  byId("readings").textContent = new Intl.NumberFormat(language).format(total);
  byId("rate").textContent = rates.length > 1 ? number(rate()) : "–";
  drawState();
  for (const e of series.values()) drawSeries(e);
  for (const [zone, c] of cards) {
    c.title.textContent = zoneName(zone);
    drawFresh(c);
  }
  drawFeed();
}
function rate() {
  const [t0, n0] = rates[0], [t1, n1] = rates[rates.length - 1];
  return t1 > t0 ? Math.round((n1 - n0) / (t1 - t0) * 1000) : 0;
}
function drawState() {
  const silent = Date.now() - lastReading;
  byId("state").textContent = state === "live" && lastReading && silent > quietMs ? word("quiet", { s: Math.round(silent / 1000) }) : word(state);
  byId("state").dataset.state = state;
}
function drawSeries(e) {
  const r = row(card(e.zone), e.zone, e.kind);
  r.name.textContent = kindName(e.kind);
  const points = [...e.points.values()].sort((a, b) => a.t - b.t);
  if (points.length) {
    const now = points[points.length - 1];
    r.average.textContent = quantity(now.a, e.unit);
    r.average.title = word("average");
    r.svg.setAttribute("aria-label", word("chart", { kind: kindName(e.kind), zone: zoneName(e.zone), n: points.length, value: quantity(now.a, e.unit) }));
    drawPath(r, points);
  }
  if (e.last) {
    r.last.textContent = `${e.last.d}: ${quantity(e.last.v, e.last.u || e.unit)}`;
    r.last.title = word("last");
  }
}
function drawPath(r, points) {
  const low = Math.min(...points.map((p) => p.l)), high = Math.max(...points.map((p) => p.h));
  // A city that has just begun fills the chart from its left edge to the right; after five minutes the chart moves.
  const end = Date.now() - clockOffset, width = Math.min(historyMs, Math.max(30000, end - points[0].t));
  const x = (t) => (200 * (1 - (end - t) / width)).toFixed(1);
  const y = (v) => (38 - 36 * (high > low ? (v - low) / (high - low) : 0.5)).toFixed(1);
  r.line.setAttribute("d", points.map((p, i) => (i ? "L" : "M") + x(p.t) + " " + y(p.a)).join(""));
  const there = points.map((p) => x(p.t) + " " + y(p.h)), back = points.map((p) => x(p.t) + " " + y(p.l)).reverse();
  r.band.setAttribute("d", "M" + there.concat(back).join("L") + "Z");
}
function drawFresh(c) {
  c.fresh = c.fresh.filter((d) => Date.now() - d.since < freshMs);
  c.freshList.hidden = !c.fresh.length;
  const items = c.fresh.slice(0, freshRows).map((d) => {
    const li = element("li");
    li.append(element("b", "", d.d), ` ${kindName(d.k)} `, element("span", "number", quantity(d.latest.v, d.latest.u)));
    return li;
  });
  c.freshList.replaceChildren(element("li", "heading", word("fresh")), ...items);
}
function drawFeed() {
  const wanted = byId("filter").value.trim().toLowerCase();
  const rows = [];
  for (const r of feed) {
    if (rows.length >= feedRows) break;
    if (wanted && ![r.z, r.k, r.d, zoneName(r.z), kindName(r.k)].some((s) => s.toLowerCase().includes(wanted))) continue;
    const tr = element("tr");
    tr.append(element("td", "", clock(r.t)), element("td", "", zoneName(r.z)), element("td", "", kindName(r.k)), element("td", "", r.d), element("td", "number", quantity(r.v, r.u)));
    rows.push(tr);
  }
  byId("feed").replaceChildren(...rows);
}

function connect() {
  const source = new EventSource("events");
  source.addEventListener("open", () => { state = "live"; drawState(); });
  source.addEventListener("snapshot", (e) => take(JSON.parse(e.data), true));
  source.addEventListener("frame", (e) => take(JSON.parse(e.data), false));
  source.addEventListener("error", () => {
    state = "lost";
    drawState();
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 2000);
  });
}
for (const b of document.querySelectorAll("button[data-lang]")) b.addEventListener("click", () => setLanguage(b.dataset.lang));
byId("filter").addEventListener("input", drawFeed);
setInterval(drawState, 1000);
setLanguage(language);
connect();
