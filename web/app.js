"use strict";

// The dashboard. It reads in this order: words and numbers, making nodes, what may be asked, the
// sections of the page, commands, the connection, the start. Everything that it shows comes from
// GET /v1/migrations and one event stream; text is only ever set as text.

// ---- words and numbers

const way = ["preparing", "copying", "catching-up", "following", "verifying", "reads-switched", "promoting", "promoted", "completed"];
const early = ["pending", "preparing", "copying", "catching-up"];
const final = (phase) => phase === "completed" || phase === "cancelled";

const grouped = new Intl.NumberFormat("en-US");
const count = (n) => grouped.format(n);
const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;

// size prints bytes, 1024 each, as PostgreSQL and the command line do.
function size(n) {
  if (n < 1024) return `${n} B`;
  let unit = -1;
  do { n /= 1024; unit++; } while (n >= 1024 && unit < 4);
  return `${n.toFixed(1)} ${"kMGTP"[unit]}B`;
}

// span prints milliseconds.
function span(ms) {
  if (ms < 1) return `${Number(ms.toPrecision(2))} ms`;
  if (ms < 1000) return `${Number(ms.toPrecision(3))} ms`;
  if (ms < 60e3) return `${(ms / 1000).toFixed(ms < 10e3 ? 1 : 0)} s`;
  const s = Math.round(ms / 1000), m = Math.floor(s / 60), h = Math.floor(m / 60), d = Math.floor(h / 24);
  if (d > 0) return `${d} d ${h % 24} h`;
  return h > 0 ? `${h} h ${m % 60} min` : `${m} min ${s % 60} s`;
}
const nanos = (ns) => span(ns / 1e6);
const known = (time) => time && !time.startsWith("0001-"); // Go's zero time
const since = (time) => Math.max(0, now() - Date.parse(time));
const clock = (time) => new Date(time).toLocaleTimeString("en-GB");
const full = (time) => new Date(time).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "long" });

let skew = 0; // of the server's clock against this one, in milliseconds
const now = () => Date.now() + skew;

// ---- making nodes

const $ = (id) => document.getElementById(id);

// h makes an element; props are attributes, except class names in the tag: h("p.soft", {}, "text").
function h(tag, props, ...children) {
  const [name, ...classes] = tag.split(".");
  const node = document.createElement(name);
  if (classes.length) node.className = classes.join(" ");
  for (const [key, value] of Object.entries(props || {})) {
    if (value === undefined || value === false) continue;
    node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((c) => c !== undefined && c !== null && c !== ""));
  return node;
}

const shapes = {
  ok: "M5 12.500l4.500 4.500L19 7.500",
  bad: "M6 6l12 12M18 6L6 18",
  wait: "M12 3a9 9 0 1 0 0 18a9 9 0 0 0 0-18M12 7v5.500l3.500 2",
  warn: "M12 3.500L22 20H2ZM12 10v4.500M12 17.500v.1",
  idle: "M7 12h10",
  now: "M12 7a5 5 0 1 0 0 10a5 5 0 0 0 0-10",
  pause: "M9 6v12M15 6v12",
  key: "M12 15v-4M8 10V7.500a4 4 0 0 1 8 0V10M6 10h12v9H6Z",
  right: "M4 12h15M13 6l6 6l-6 6",
};

const NS = "http://www.w3.org/2000/svg";
function svg(tag, props, ...children) {
  const node = document.createElementNS(NS, tag);
  for (const [key, value] of Object.entries(props)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
const icon = (shape) => svg("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: shapes[shape], ...(shape === "now" ? { class: "solid" } : {}) }));

// state is a word with its icon: never colour alone.
const state = (kind, text) => h(`span.state.${kind}`, {}, icon(kind), text);

// age is a duration that goes on by itself; tick updates it.
const age = (time) => h("time", { datetime: time, title: full(time), "data-since": time }, span(since(time)));
function tick() {
  for (const node of document.querySelectorAll("[data-since]")) {
    const text = span(since(node.dataset.since));
    if (node.textContent !== text) node.textContent = text;
  }
}

const table = (heads, rows, label) => h("div.scroll", {}, h(`table.${label.split(" ")[0].toLowerCase()}`, { "aria-label": label },
  h("thead", {}, h("tr", {}, heads.map(([text, cls]) => h(`th${cls ? "." + cls : ""}`, { scope: "col" }, text)))),
  h("tbody", {}, rows)));

function bar(done, total, finished) {
  const part = finished ? 1 : total > 0 ? Math.min(done / total, 0.99) : 0;
  const node = h(`progress${finished ? ".done" : ""}`, { max: "1", value: String(part), "aria-label": "done" });
  return h("div.bar", {}, node, h("span", {}, total < 0 && !finished ? "?" : `${Math.floor(part * 100)} %`));
}

// ---- what may be asked

// verdicts says of each verb why it is not possible, or "" when it is. The server decides; this
// only spares people a refusal.
function verdicts(s) {
  const late = s.owner === "target" || s.phase === "promoted" || s.phase === "rolling-back";
  const busy = s.phase === "promoting" || s.phase === "rolling-back";
  const failed = s.phase === "failed";
  const over = final(s.phase) && `the migration is ${s.phase}`;
  const approval = (s.gates || []).find((g) => g.manual);
  const waits = s.waiting_for === "approval";
  const first = (...reasons) => over || reasons.find((r) => r) || "";
  return {
    approve: first(late && "the target owns the data already", busy && `no gate waits while it is ${s.phase}`, failed && "it failed: resume it first",
      approval && approval.open && `the gate is open already${approval.by ? `, by ${approval.by}` : ""}`),
    pause: first(s.paused && "it is paused already", busy && `a change of owner is never paused half-way`, failed && "it stands still: it failed"),
    resume: first(!s.paused && !failed && !s.error && s.waiting_for !== "resume" && "it is neither paused nor failed"),
    promote: first(late && s.phase !== "failed" && "the target owns the data already", busy && "it is promoting", failed && "it failed: resume it first",
      s.paused && "it is paused: resume it first", waits && "it waits for an approval: approve it", early.includes(s.phase) && "the target does not follow yet"),
    rollback: first(s.phase === "rolling-back" && "it is rolling back", s.phase !== "promoted" && "the source owns the data", s.paused && "it is paused: resume it first",
      !s.rollback.safe && `not safe, because ${(s.rollback.because || []).join("; ")}`),
    complete: first(!(s.phase === "promoted" || failed && s.owner === "target") && "the target does not own the data"),
    cancel: first(late && "the target owns the data: roll back, or complete"),
  };
}

// wanted is the verb that the migration waits for.
function wanted(s) {
  if (s.waiting_for === "approval") return "approve";
  if (s.waiting_for === "promote") return "promote";
  if (s.paused || s.phase === "failed" || s.waiting_for === "resume") return "resume";
  return "";
}

const verbs = {
  approve: { label: "Approve…" },
  pause: { label: "Pause" },
  resume: { label: "Resume" },
  promote: { label: "Promote…" },
  rollback: { label: "Roll back…", danger: true },
  complete: { label: "Complete…", danger: true },
  cancel: { label: "Cancel…", danger: true },
};

const questions = {
  approve: { title: (n) => `Approve ${n}?`, yes: "Approve", text: "This opens the gate before the promotion. When the other gates are open too, the promotion begins at once." },
  promote: { title: (n) => `Promote ${n}: make the target the owner?`, yes: "Promote", text: "Writes wait for a moment; through the gateway nothing fails. Until the new owner is on record every failure undoes itself. Afterwards the old database follows the new one, so that you can go back." },
  rollback: { title: (n) => `Roll ${n} back: make the source the owner again?`, yes: "Roll back", text: "The same as a promotion, with the same proof, in the other direction. What was written to the target since is kept." },
  complete: { title: (n) => `Complete ${n}? There is no way back afterwards.`, yes: "Complete", text: "The reverse link is dropped and the old database stops following. It stays fenced against writes." },
  cancel: { title: (n) => `Cancel ${n}?`, yes: "Cancel the migration", text: "Links, slots and triggers are removed. The source goes on owning the data; the tables on the target stay, and would have to be copied again." },
};

// ---- the sections of the page

const mood = (s) => final(s.phase) ? (s.phase === "completed" ? "ok" : "idle") : s.phase === "failed" || s.error ? "bad" : s.paused || s.waiting_for ? "wait" : s.phase === "promoted" ? "ok" : "now";

function showHead(s) {
  $("name").replaceChildren(s.name, h("small", {}, s.playbook));
  const db = (side, address) => h(`span.db${s.owner === side ? ".owns" : ""}`, {}, address, s.owner === side ? h("span.tag", {}, icon("key"), `${side}, owns the data`) : h("span.tag.soft", {}, side));
  $("route").replaceChildren(db("source", s.source), icon("right"), db("target", s.target));

  const kind = mood(s);
  $("phase").className = `phase ${kind}`;
  $("phase").replaceChildren(
    h("strong", {}, icon(kind), s.phase),
    h("span", {}, s.paused ? "paused · " : "", !s.running && !final(s.phase) ? "not driven now · " : "",
      final(s.phase) ? "" : s.waiting_for ? `waits for ${s.waiting_for} · ` : s.step ? `${s.step} · ` : "", known(s.phase_since) ? age(s.phase_since) : ""));
}

function alert(kind, title, ...rest) {
  return h(`div.alert.${kind}`, { role: kind === "bad" ? "alert" : undefined }, icon(kind === "bad" ? "warn" : "wait"), h("b", {}, title), rest);
}

function showAlerts(s) {
  const all = [];
  if (s.error) all.push(alert("bad", s.error, s.hint ? h("p", {}, `What to do: ${s.hint}`) : ""));
  if (s.waiting_for === "approval") all.push(alert("wait", "Waits for an approval", h("p", {}, "The other gates have been measured below. Approve when people are ready.")));
  if (s.waiting_for === "promote") all.push(alert("wait", "Goes no further by itself", h("p", {}, "Promote when people are ready; it keeps following until then.")));
  if (s.throttle) all.push(alert("wait", `Throttled, ${s.throttle.name}`, h("p", {}, `${s.throttle.reason}, for `, age(s.throttle.since), ". Copy and link stand back meanwhile; changes go on being stored.")));
  if (s.paused) all.push(alert("wait", "Paused", h("p", {}, `The link stands still and the owner keeps its WAL meanwhile${s.lag ? `: ${size(s.lag.retained_bytes)} when last measured` : ""}. Resume to go on.`)));
  if (!s.running && !final(s.phase) && s.phase !== "failed") all.push(alert("wait", "No process drives this migration now", h("p", {}, "A command is remembered until one does.")));
  if (s.blockers && s.blockers.length) {
    all.push(alert("wait", `The fence waits for ${plural(s.blockers.length, "writer")}`, h("ul", {}, s.blockers.map((b) =>
      h("li", {}, `${b.pid ? `PID ${b.pid}` : `prepared transaction ${b.gid}`}, role ${b.role}${b.application ? `, ${b.application}` : ""}${b.state ? `, ${b.state}` : ""}, for ${nanos(b.age_ns)}${b.ended ? `, ${b.ended}` : ""}`, b.query ? h("code", {}, ` ${b.query}`) : "")))));
  }
  $("alerts").replaceChildren(...all);
}

// showTrack draws the straight way, with the detours that the migration is on.
function showTrack(s) {
  const stays = s.phases || [];
  const names = [...way];
  if (s.phase === "rolling-back" || s.phase === "rolled-back") names.splice(names.indexOf("completed"), 0, "rolling-back", "rolled-back");
  if (s.phase === "cancelled") names[names.length - 1] = "cancelled";
  const last = stays.findLast((p) => names.includes(p.phase) && p.phase !== s.phase);
  const at = s.phase === "failed" ? names.indexOf(last ? last.phase : "preparing") : names.indexOf(s.phase);
  $("track").replaceChildren(...names.map((name, i) => {
    const visits = stays.filter((p) => p.phase === name);
    const took = visits.reduce((sum, p) => sum + p.took_ns, 0);
    const skipped = !visits.length && s.phase === "cancelled";
    const ended = i === at && final(s.phase);
    const kind = i === at && s.phase === "failed" ? "fail" : ended || i < at && !skipped ? "done" : i === at ? "now" : "ahead";
    const word = { fail: "failed", done: "done", now: "now", ahead: skipped ? "left out" : "ahead" }[kind];
    const mark = h("span.mark", {}, kind === "ahead" ? "" : icon({ fail: "bad", done: "ok", now: s.paused ? "pause" : "now" }[kind]));
    const time = kind === "now" && visits.length ? age(visits.at(-1).start) : ended ? "" : took ? nanos(took) : "";
    return h(`li.${kind}`, { "aria-current": i === at ? "step" : undefined, title: word }, mark, h("b", {}, name), h("span", {}, time || (kind === "ahead" ? "–" : "")));
  }));
}

function showTiles(s) {
  const tile = (title, kind, big, ...rest) => h("div.tile", {}, h("h2", {}, title), h(`div.big.${kind}`, {}, kind === "plain" ? "" : icon(kind), big), rest);
  const p = s.proof;
  const held = s.comparison_paused;
  const proof = s.checked || held ? tile("Proof", held ? "wait" : "plain", held ? "comparison paused" : "comparing", s.checked ? bar(s.checked.done, s.checked.total, false) : "",
    h("p", {}, held ? `by ${held.by}` : speed(s.checked))) :
    !p ? tile("Proof", "idle", "none yet", h("p", {}, "Both sides are compared before anything is promoted.")) :
    tile("Proof", p.differences ? "bad" : "ok", plural(p.differences, "difference"), h("p", {}, `${plural(p.rows, "row")} in ${plural(p.tables, "table")}`), h("p", {}, age(p.time), " ago"));
  const back = s.rollback.safe ? tile("Rollback", "ok", "safe", h("p", {}, "Going back now would lose nothing.")) :
    s.owner === "target" && !final(s.phase) ? tile("Rollback", "bad", "not safe, because", h("ul", {}, (s.rollback.because || []).map((b) => h("li", {}, b)))) :
    tile("Rollback", "idle", "nothing to roll back", h("p", {}, final(s.phase) ? `The migration is ${s.phase}.` : "The source owns the data."));
  const owner = tile("Owner", s.owner ? "key" : "idle", s.owner || "none yet", h("p", {}, s.owner === "target" ? s.target : s.source),
    h("p", {}, `epoch ${s.epoch}`, s.reads_percent ? ` · ${s.reads_percent} % of reads on the other side` : ""));
  const lag = h("div.tile", { id: "lag" });
  $("tiles").replaceChildren(owner, lag, proof, back);
  showLag(s);
}

function showLag(s) {
  const l = s.lag;
  const open = current.samples.filter((x) => x.lag !== null);
  $("lag").replaceChildren(h("h2", {}, "Lag"),
    h(`div.big${l ? "" : ".idle"}`, {}, l ? size(l.bytes) : [icon("idle"), "not measured"]),
    h("p", {}, l ? `${l.time_ns ? `${nanos(l.time_ns)} behind` : "up to date"} · slot keeps ${size(l.retained_bytes)}` : "The link is not running."),
    l ? h("p", {}, `${plural(l.rows, "row")} applied`, rate(open, "applied", "/s")) : "",
    open.length > 1 ? spark(open) : "");
}

// speed is how fast a comparison is, and how long it takes yet.
const speed = (c) => `${c.rate ? `${count(c.rate)} rows/s` : "rate not known yet"}${c.left_ns ? ` · about ${nanos(c.left_ns)} left` : ""}`;

// perSecond is how fast a figure of the samples grew over the last ten seconds, or null.
function perSecond(samples, field) {
  const to = samples.at(-1), from = samples.find((x) => to && to.at - x.at <= 10e3);
  if (!from || to.at - from.at < 2e3 || to[field] < from[field]) return null;
  return (to[field] - from[field]) / (to.at - from.at) * 1000;
}

function rate(samples, field, unit) {
  const n = perSecond(samples, field);
  return n === null ? "" : ` · ${count(Math.round(n))}${unit}`;
}

function spark(samples) {
  const first = samples[0].at, width = Math.max(samples.at(-1).at - first, 1);
  const top = Math.max(...samples.map((x) => x.lag), 1024);
  const points = samples.map((x) => `${((x.at - first) / width * 240).toFixed(1)},${(31 - x.lag / top * 29).toFixed(1)}`);
  const label = `Lag over the last ${span(width)}: at most ${size(Math.max(...samples.map((x) => x.lag)))}`;
  return svg("svg", { class: "spark", viewBox: "0 0 240 32", preserveAspectRatio: "none", role: "img", "aria-label": label },
    svg("title", {}, label), svg("polygon", { points: `0,32 ${points.join(" ")} 240,32` }), svg("line", { x1: 0, x2: 240, y1: 31.5, y2: 31.5 }), svg("polyline", { points: points.join(" ") }));
}

function showGates(s) {
  const gates = s.gates || [];
  if (!gates.length) return $("gates").replaceChildren(h("p.soft", {}, "None measured yet. A gate is measured when the migration comes to it."));
  $("gates").replaceChildren(table([["Gate"], ["State"], ["Measured"], ["Wanted"], ["Since", "num"]], gates.map((g) => h("tr", {},
    h("td.nowrap", {}, h("b", {}, g.name), h("div.soft", {}, `before ${g.phase}`)),
    h("td.nowrap", {}, g.open ? state("ok", "open") : g.manual ? state("wait", "for a person") : state("wait", "closed")),
    h("td", {}, g.by ? `by ${g.by}` : g.measured), h("td", {}, g.wanted), h("td.num.soft", {}, known(g.since) ? age(g.since) : ""))), "Gates"));
}

// showSteps lists the rows of the engine's own table for the present phase.
function showSteps(s) {
  const phase = s.phase === "rolling-back" ? "promoting" : s.phase;
  const rows = current.steps.filter((r) => r.phase === phase), done = s.steps_done || [];
  if (!rows.length) return $("steps").replaceChildren(h("p.soft", {}, "None: nothing is being done."));
  $("steps").replaceChildren(table([["Step"], ["State"], ["Does"], ["Budget", "num"]], rows.map((r) => h("tr", { title: `Needs: ${r.needs}. ${r.undo ? `Undone: ${r.undo}. ` : ""}Recognised as done by: ${r.known}.` },
    h("td.mono.nowrap", {}, r.name, r.waits ? h("div.soft", {}, "clients wait") : ""),
    h("td.nowrap", {}, r.name === s.step ? state("now", "now") : done.includes(r.name) ? state("ok", "done") : state("idle", "ahead")),
    h("td", {}, r.does), h("td.num.soft", {}, r.budget_ns ? nanos(r.budget_ns) : "–"))), "Steps"));
}

const shownTables = 100;

function showCopy(s) {
  const tables = s.tables || [], parts = [];
  const rows = tables.reduce((n, t) => n + t.rows, 0), bytes = tables.reduce((n, t) => n + t.bytes, 0);
  if (s.copied) {
    const seconds = s.copied.elapsed_ns / 1e9;
    parts.push(h("div", {}, h("div.line", {}, state("ok", `${plural(s.copied.rows, "row")} of ${plural(s.copied.tables, "table")} copied`),
      h("span.soft", {}, `${size(s.copied.bytes)} in ${nanos(s.copied.elapsed_ns)}${seconds > 0 ? ` · ${size(Math.round(s.copied.bytes / seconds))}/s` : ""}`))));
  } else if (tables.length) {
    const total = tables.reduce((n, t) => n + Math.max(t.total_rows, t.rows), 0), unknown = tables.some((t) => t.total_rows < 0);
    const left = s.eta ? ` · ${s.eta.unknown ? `left: unknown, ${s.eta.unknown}` : `about ${nanos(s.eta.low_ns)} to ${nanos(s.eta.high_ns)} left`}` : "";
    parts.push(h("div", {}, h("div.line", {}, h("b", {}, `${plural(rows, "row")}${unknown ? "" : ` of about ${count(total)}`}`), h("span.soft", {}, `${size(bytes)}${rate(current.samples, "copied", " rows/s")}${left}`)),
      bar(rows, unknown ? -1 : total, tables.every((t) => t.done))));
  }
  if (s.build) parts.push(h("div", {}, h("div.line", {}, h("b", {}, "Keys, indexes, constraints"), h("span.soft", {}, `${s.build.done} of ${s.build.total}`)),
    bar(s.build.done, s.build.total, s.build.done >= s.build.total), h("span.soft.mono", {}, s.build.what)));
  if (tables.length) parts.push(listTables(s, tables));
  if (!parts.length) parts.push(h("p.soft", {}, "Not begun."));
  $("copy").replaceChildren(h("div.blocks", {}, parts));
}

function listTables(s, tables) {
  const sorted = [...tables].sort((a, b) => Math.max(b.total_rows, b.rows) - Math.max(a.total_rows, a.rows) || (a.table < b.table ? -1 : 1));
  const list = table([["Table"], ["Rows", "num"], ["Size", "num.wide"], ["Format", "wide"], ["Copied"]], sorted.slice(0, shownTables).map((t) => h("tr", {},
    h("td.mono", {}, t.table), h("td.num", {}, count(t.rows)), h("td.num.wide", {}, size(t.bytes)), h("td.wide.soft", {}, t.format),
    h("td", {}, bar(t.rows, t.total_rows, t.done)))), "Tables");
  const more = sorted.length > shownTables ? h("p.soft", {}, `and ${plural(sorted.length - shownTables, "smaller table")}`) : "";
  if (!s.copied) return h("div", {}, list, more);
  const box = h("details", { open: current.tablesOpen ?? tables.length <= 12 }, h("summary", {}, plural(tables.length, "table")), list, more);
  box.addEventListener("toggle", () => { current.tablesOpen = box.open; });
  return box;
}

function showProofs(s) {
  const block = (title, p) => h("div", {},
    h("div.line", {}, h("b", {}, title), p.differences ? state("bad", `different: ${plural(p.differences, "row")}`) : p.uncovered ? state("wait", "equal as far as covered") : state("ok", "equal: 0 differences")),
    h("dl.facts", {},
      h("dt", {}, "Compared"), h("dd", {}, p.kind === "delta" ? `${plural(p.keys, "key")} touched since the exact proof` : `${plural(p.rows, "row")} in ${plural(p.tables, "table")}`),
      h("dt", {}, p.since ? "Instants" : "Instant"), h("dd", {}, h("span.mono", {}, p.since ? `${p.since} to ${p.lsn}` : p.lsn), " · ", age(p.time), " ago", p.since ? "; it was paused between" : ""),
      h("dt", {}, "Took"), h("dd", {}, nanos(p.elapsed_ns), p.paused_ns ? `, applying stood still for ${nanos(p.paused_ns)}` : ""),
      p.uncovered ? [h("dt", {}, "Not covered"), h("dd", {}, p.uncovered.join("; "))] : "",
      p.samples ? [h("dt", {}, "Differing keys"), h("dd.mono", {}, p.samples.join(", "))] : ""));
  const parts = [];
  if (s.checked || s.comparison_paused) parts.push(comparing(s));
  if (s.proof) parts.push(block("Everything, at one instant", s.proof));
  if (s.fence_proof) parts.push(block("Under the fence of the last change of owner, while clients waited", s.fence_proof));
  if (!parts.length) parts.push(h("p.soft", {}, "Nothing has been compared yet."));
  $("proofs").replaceChildren(h("div.blocks", {}, parts));
}

// comparing is how far a comparison that runs is, with the button that pauses it or lets it go on.
function comparing(s) {
  const c = s.checked, held = s.comparison_paused, verb = held ? "resume-verify" : "pause-verify";
  const button = h("button", { type: "button", id: "verb-comparison" }, held ? "Resume the comparison" : "Pause the comparison");
  button.addEventListener("click", () => say(verb));
  return h("div", {}, h("div.line", {}, held ? state("wait", `Comparison paused by ${held.by}`) : h("b", {}, "Comparing now"),
    held ? h("span.soft", {}, age(held.since), " ago") : h("span.soft", {}, `${count(c.done)} of about ${count(c.total)} rows · ${speed(c)}`)),
    c ? bar(c.done, c.total, false) : "", button);
}

// showTraffic is for migrations whose router sees its clients.
function showTraffic(s) {
  const t = s.traffic, parts = [];
  $("traffic-card").hidden = !t;
  if (!t) return;
  const c = t.clients;
  if (c) {
    parts.push(h("div.line", {}, h("b", {}, `${plural(c.connected, "client")} connected`), c.held ? state("wait", `${count(c.held)} wait for the switch`) : ""),
      h("dl.facts", {},
        h("dt", {}, "Transactions"), h("dd", {}, count(c.transactions)),
        h("dt", {}, "Sessions"), h("dd", {}, `${count(c.moved)} moved`, c.ended ? `, ${count(c.ended)} could not and were ended` : ""),
        c.refused ? [h("dt", {}, "Refused"), h("dd", {}, `${plural(c.refused, "transaction")} that waited for too long`)] : ""));
  }
  if (t.fault) parts.push(h("p", {}, state("bad", "Reads were taken back"), " ", t.fault));
  if (t.owner.reads || t.other.reads) parts.push(table([["Reads"], ["Answered", "num"], ["Failed", "num"], ["p50 / p95", "num"]], [["owner", t.owner], [`other, ${t.percent} %`, t.other]].map(([name, f]) => h("tr", {},
    h("td", {}, name), h("td.num", {}, count(f.reads)), h("td.num", {}, count(f.failed)), h("td.num", {}, `${nanos(f.p50_ns)} / ${nanos(f.p95_ns)}`))), "Reads"));
  if (t.shadow) parts.push(shadowed(t.shadow));
  if (!parts.length) parts.push(h("p.soft", {}, "Nobody has come yet."));
  $("traffic").replaceChildren(h("div.blocks", {}, parts));
}

function shadowed(f) {
  const found = (f.mismatches || []).map((m) => h("tr", {}, h("td.mono", {}, m.query), h("td", {}, m.columns ? `${m.kind}: ${m.columns.join(", ")}` : m.kind), h("td.num", {}, count(m.count))));
  return h("div", {},
    h("div.line", {}, h("b", {}, `${plural(f.compared, "read")} run on both sides`), f.mismatched ? state("bad", `${count(f.mismatched)} answered differently`) : state("ok", "all answered alike")),
    h("p.soft", {}, `${count(f.noise)} more that the owner itself answers differently each time, ${count(f.left_out)} left out · p95 ${nanos(f.owner_p95_ns)} on the owner, ${nanos(f.other_p95_ns)} on the other`),
    found.length ? table([["Query"], ["Difference"], ["Times", "num"]], found, "Reads answered differently") : "");
}

function showPromotions(s) {
  const list = s.promotions || [], r = s.rehearsal;
  const rehearsed = r ? h("p", {}, h("b", {}, "Rehearsed "), age(r.at), ` ago: no writes for ${nanos(r.blackout_ns)}, ${r.stall.clients ? `${plural(r.stall.clients, "client")} waited, longest ${nanos(r.stall.max_ns)}` : "nobody waited"}`) : "";
  if (!list.length) return $("promotions").replaceChildren(rehearsed, h("p.soft", {}, "None yet: the source has owned the data from the start."));
  $("promotions").replaceChildren(rehearsed, table([["Epoch", "num"], ["Owner"], ["No writes", "num"], ["Stall p50 / p99 / max", "num"], ["Proof"], ["When", "num"]], list.toReversed().map((p) => h("tr", {},
    h("td.num", {}, String(p.epoch)), h("td.nowrap", {}, p.to, h("div.soft", {}, p.to === "target" ? "promotion" : "rollback")), h("td.num", {}, nanos(p.blackout_ns)),
    h("td.num", {}, p.stall.clients ? `${nanos(p.stall.p50_ns)} / ${nanos(p.stall.p99_ns)} / ${nanos(p.stall.max_ns)}` : "nobody waited", p.stall.clients ? h("div.soft", {}, plural(p.stall.clients, "client")) : ""),
    h("td.nowrap", {}, p.proof.differences ? state("bad", count(p.proof.differences)) : state("ok", "equal"),
      h("div.soft", {}, `${plural(p.proof.keys, "key")} in ${nanos(p.proof.elapsed_ns)}`)),
    h("td.num.soft", { title: full(p.at) }, clock(p.at)))), "Changes of owner"));
}

const eventIcons = { phase: "right", step: "now", gate: "key", proof: "ok", promotion: "ok", rehearsal: "ok", command: "right", error: "warn", owner: "key", finding: "warn", link: "now" };

function showEvent(e) {
  const node = h(`li.${e.type === "phase" ? "phase-event" : e.type}`, {}, h("time", { datetime: e.time, title: full(e.time) }, clock(e.time)),
    h("span.kind", {}, icon(eventIcons[e.type] || "idle"), e.type), h("p", {}, e.message, e.actor ? h("span.soft", {}, ` · ${e.actor}`) : ""));
  const list = $("events");
  list.prepend(node);
  while (list.children.length > 500) list.lastChild.remove();
}

function showVerbs(s) {
  const why = verdicts(s), want = wanted(s);
  for (const [verb, { danger }] of Object.entries(verbs)) {
    const button = $(`verb-${verb}`);
    button.setAttribute("aria-disabled", why[verb] ? "true" : "false");
    button.title = why[verb];
    $(`why-${verb}`).textContent = why[verb];
    button.className = !why[verb] && verb === want ? "primary" : !why[verb] && danger ? "danger" : "";
  }
}

// sections lists what each part of the page is made from, so that only what changed is made anew:
// whoever is reading or selecting text is not disturbed.
const sections = [
  [showHead, ["name", "playbook", "source", "target", "owner", "phase", "phase_since", "step", "waiting_for", "paused", "running", "error"]],
  [showAlerts, ["error", "throttle", "hint", "waiting_for", "paused", "running", "phase", "blockers"]],
  [showTrack, ["phase", "phases", "paused"]],
  [showTiles, ["owner", "source", "target", "epoch", "reads_percent", "proof", "checked", "comparison_paused", "rollback", "phase"]],
  [showLag, ["lag"]],
  [showGates, ["gates"]],
  [showSteps, ["phase", "step", "steps_done"]],
  [showCopy, ["tables", "copied", "build", "eta"]],
  [showProofs, ["proof", "fence_proof", "checked", "comparison_paused"]],
  [showTraffic, ["traffic"]],
  [showPromotions, ["promotions", "rehearsal"]],
  [showVerbs, ["phase", "owner", "paused", "waiting_for", "error", "gates", "rollback"]],
];

function show(s) {
  current.status = s;
  $("migration").hidden = false;
  $("empty").hidden = true;
  document.title = `${s.error || s.phase === "failed" ? "⚠ " : ""}${s.name}: ${s.phase} – Ficus`;
  for (const [section, fields] of sections) {
    const made = JSON.stringify(fields.map((f) => s[f]));
    if (current.made.get(section) === made) continue;
    current.made.set(section, made);
    section(s);
  }
  const tab = document.querySelector(`nav a[aria-current] span`);
  if (tab) tab.textContent = s.phase;
}

// sample remembers lag and rows once a second, for the curve and the rates.
function sample() {
  const s = current.status;
  if (!s || document.body.classList.contains("stale")) return;
  const rows = (s.tables || []).reduce((n, t) => n + t.rows, 0);
  current.samples.push({ at: Date.now(), lag: s.lag ? s.lag.bytes : null, applied: s.lag ? s.lag.rows : 0, copied: rows });
  if (current.samples.length > 300) current.samples.shift();
  showLag(s);
}

// ---- commands

async function press(verb) {
  const s = current.status, why = verdicts(s)[verb];
  if (why) return answer(`${verb} is not possible now: ${why}`);
  if (questions[verb] && !(await confirmed(verb, s))) return;
  await say(verb);
}

// say puts a command on record.
async function say(verb) {
  answer(`${verb}: asking…`);
  try {
    const actor = $("actor").value.trim() || "dashboard";
    await call("POST", `v1/migrations/${encodeURIComponent(current.status.name)}/${verb}`, { actor });
    answer(`${verb} is on record.`);
  } catch (problem) {
    answer(problem.hint ? `${problem.message}: ${problem.hint}` : problem.message, true);
  }
}

function answer(text, bad) {
  $("answer").textContent = text;
  $("answer").className = bad ? "answer bad" : "answer";
}

function confirmed(verb, s) {
  const q = questions[verb], box = $("confirm");
  const facts = [["Owner now", `${s.owner}, ${s.owner === "target" ? s.target : s.source}`]];
  if (s.lag) facts.push(["Lag", `${size(s.lag.bytes)}${s.lag.time_ns ? `, ${nanos(s.lag.time_ns)}` : ""}`]);
  if (s.proof) facts.push(["Proof", `${plural(s.proof.differences, "difference")}, ${span(since(s.proof.time))} ago`]);
  if (s.promotions && s.promotions.length) facts.push(["Last stall", `p99 ${nanos(s.promotions.at(-1).stall.p99_ns)}, writes stood still for ${nanos(s.promotions.at(-1).blackout_ns)}`]);
  if (s.owner === "target") facts.push(["Rollback", s.rollback.safe ? "safe" : "not safe"]);
  $("confirm-title").textContent = q.title(s.name);
  $("confirm-text").textContent = q.text;
  $("confirm-facts").replaceChildren(...facts.flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, v)]));
  $("confirm-yes").textContent = q.yes;
  $("confirm-yes").className = verbs[verb].danger ? "danger yes" : "primary";
  return ask(box).then((choice) => choice === "yes");
}

// ask opens a dialog and returns the value of the button that ended it. It does not wait for the
// event close, which may come so late that the same dialog is open again.
function ask(box) {
  box.showModal();
  return new Promise((done) => {
    box.querySelector("form").onsubmit = (event) => done(event.submitter ? event.submitter.value : "");
    box.oncancel = () => done("");
  });
}

// ---- the commands that clients sent

// showInbox asks for the commands that are not over. A migration that takes none is asked once.
async function showInbox() {
  const mine = current;
  if (!mine.status || mine.noInbox || document.hidden || document.body.classList.contains("stale")) return;
  const path = `v1/migrations/${encodeURIComponent(mine.name)}/commands`;
  const list = await call("GET", `${path}?limit=21`).catch(() => null);
  if (current !== mine || !list) return;
  mine.noInbox = !list.taken;
  $("inbox-card").hidden = !list.taken;
  const made = JSON.stringify(list.commands);
  if (mine.made.get("inbox") === made) return;
  mine.made.set("inbox", made);
  const rows = list.commands.slice(0, 20).map((c) => h("tr", {},
    h("td", {}, c.key, c.error ? h("p.soft", {}, c.error) : ""), h("td", {}, c.type), h("td", {}, c.order || "–"),
    h("td", {}, icon(c.state === "dead" ? "bad" : "wait"), c.state, " ", age(c.accepted)),
    h("td", {}, c.state === "dead" ? inboxButton(`${path}/${encodeURIComponent(c.key)}/requeue`, "Send again", c.key) : "")));
  $("inbox").replaceChildren(rows.length ? h("table", {}, h("thead", {}, h("tr", {}, ["Key", "Type", "Order", "State", ""].map((t) => h("th", {}, t)))), h("tbody", {}, rows)) :
    h("p", {}, "None wait."), list.commands.length > 20 ? h("p.soft", {}, "And more: ficus commands list") : "");
}

function inboxButton(path, label, key) {
  const button = h("button", { type: "button", "aria-label": `${label}: ${key}` }, label);
  button.addEventListener("click", () => call("POST", path, {}).then(showInbox, (problem) => answer(problem.message, true)));
  return button;
}

// ---- the connection

const headers = () => {
  const token = sessionStorage.getItem("token");
  return token ? { Authorization: `Bearer ${token}` } : {};
};

async function request(method, path, body, signal) {
  const options = { method, headers: headers(), signal, cache: "no-store" };
  if (body) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const response = await fetch(path, options);
  const date = Date.parse(response.headers.get("Date"));
  if (Math.abs(date - Date.now()) > 5000) skew = date - Date.now();
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({ message: `${response.status} ${response.statusText}` }));
  if (response.status === 401) await login();
  throw problem;
}
const call = async (method, path, body) => (await request(method, path, body)).json();

let asking = null; // the login that several requests may wait for
function login() {
  asking ||= ask($("login")).then(() => {
    sessionStorage.setItem("token", $("token").value.trim());
    $("token").value = "";
    asking = null;
  });
  return asking;
}

function connection(kind, text) {
  const node = $("link");
  document.body.classList.toggle("stale", kind !== "live" && current.status !== null);
  if (node.dataset.text === text) return;
  node.dataset.text = text;
  node.className = `link ${kind}`;
  node.replaceChildren(icon(kind === "live" ? "ok" : kind === "lost" ? "warn" : "wait"), text);
}

const pause = (ms) => new Promise((done) => { setTimeout(done, ms); });

// fresh is what the page knows of the migration that it shows.
const fresh = () => ({ name: null, status: null, seq: null, steps: [], samples: [], made: new Map(), tablesOpen: undefined, stop: new AbortController() });
let current = fresh();

// follow shows one migration, over one connection after the other, until another is chosen.
async function follow(name) {
  current.stop.abort();
  const mine = current = fresh();
  mine.name = name;
  $("events").replaceChildren();
  $("inbox-card").hidden = true;
  answer("");
  for (let wait = 500; current === mine; wait = Math.min(wait * 2, 5000)) {
    try {
      connection(mine.status ? "lost" : "", mine.status ? "connection lost, trying again" : "connecting");
      await stream(mine, () => { wait = 500; });
    } catch (problem) {
      if (current !== mine) return;
      if (problem.code === "not_found") return begin();
      if (typeof problem.code === "string") answer(problem.hint ? `${problem.message}: ${problem.hint}` : problem.message, true);
    }
    if (current !== mine) return;
    connection("lost", "connection lost, trying again");
    await pause(wait);
  }
}

// silence is for how long a live stream may send nothing: three heartbeats.
const silence = 45e3;

async function stream(mine, alive) {
  const path = `v1/migrations/${encodeURIComponent(mine.name)}`;
  if (mine.seq === null) mine.seq = Math.max(0, (await call("GET", path)).seq - 300); // not a whole week's story
  mine.steps = (await call("GET", `${path}/steps`)).steps;
  const quiet = new AbortController();
  const response = await request("GET", `${path}/events?after=${mine.seq}`, undefined, AbortSignal.any([mine.stop.signal, quiet.signal]));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "", timer; ;) {
    timer = setTimeout(() => quiet.abort(), silence);
    const { value, done } = await reader.read().finally(() => clearTimeout(timer));
    if (done || current !== mine) return;
    connection("live", "live");
    alive();
    const messages = (rest + value).split("\n\n");
    rest = messages.pop();
    for (const text of messages) take(mine, text);
  }
}

// take handles one server-sent event.
function take(mine, text) {
  const fields = Object.fromEntries(text.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
  if (!fields.data) return; // a heartbeat
  const data = JSON.parse(fields.data);
  if (fields.event === "status") return show(data);
  if (fields.event === "problem") throw data;
  if (data.seq > mine.seq) {
    mine.seq = data.seq;
    showEvent(data);
  }
}

// ---- the start

// choose lists the migrations and follows the one in the address, or the first.
function choose(migrations) {
  const asked = decodeURIComponent(location.hash.slice(1));
  const chosen = migrations.find((m) => m.name === asked) || migrations[0];
  const tabs = migrations.length > 1 ? migrations : [];
  const made = JSON.stringify([tabs.map((m) => [m.name, m.phase]), chosen && chosen.name]);
  if ($("migrations").dataset.made !== made) {
    $("migrations").dataset.made = made;
    $("migrations").replaceChildren(...tabs.map((m) =>
      h("a", { href: `#${encodeURIComponent(m.name)}`, "aria-current": m === chosen ? "page" : undefined }, m.name, h("span.soft", {}, m.phase))));
  }
  if (chosen) {
    if (chosen.name !== current.name) follow(chosen.name);
    return;
  }
  current.stop.abort();
  current = fresh();
  connection("live", "live");
  $("migration").hidden = true;
  $("empty").hidden = false;
  $("empty").replaceChildren("No migration yet. ", h("code", {}, "ficus run"), ", or a POST to ", h("code", {}, "/v1/migrations"), ", starts one.");
}

let beginning = false;

// begin asks until there is an answer.
async function begin() {
  if (beginning) return;
  beginning = true;
  for (let listed = false; !listed;) {
    try {
      choose((await call("GET", "v1/migrations")).migrations);
      listed = true;
    } catch (problem) {
      connection("lost", problem.message && problem.code === "unauthorized" ? "the token was not accepted" : "no connection, trying again");
      await pause(2000);
    }
  }
  beginning = false;
}

function start() {
  for (const [verb, { label }] of Object.entries(verbs)) {
    const button = h("button", { type: "button", id: `verb-${verb}`, "aria-describedby": `why-${verb}` }, label);
    button.addEventListener("click", () => press(verb));
    $("verbs").append(button, h("span", { id: `why-${verb}`, hidden: true }));
  }
  $("actor").value = localStorage.getItem("actor") || "";
  $("actor").addEventListener("change", () => localStorage.setItem("actor", $("actor").value.trim()));
  addEventListener("hashchange", begin);
  setInterval(() => { tick(); sample(); }, 1000);
  setInterval(showInbox, 3000);
  setInterval(begin, 10e3); // others may have started a migration
  call("GET", "healthz").then((health) => { $("version").textContent = `Ficus ${health.version}`; }, () => {});
  begin();
}

start();
