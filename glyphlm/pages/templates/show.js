"use strict";
// Draws the data of pages/show.py as SVG and tables, without a library, so that the page needs no network.
const data = JSON.parse(document.getElementById("data").textContent);
const at = { text: 0, token: 0 };
const $ = (id) => document.getElementById(id);
const text = () => data.texts[at.text];
const token = (id) => data.tokens[id];

function make(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "title"].includes(name);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== false) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const bytes = (base64) => Uint8Array.from(atob(base64), (sign) => sign.charCodeAt(0));
const percent = (p) => (p >= 0.995 ? "100" : p >= 0.0995 ? (100 * p).toFixed(0) : p >= 0.00095 ? (100 * p).toFixed(1) : "<0.1") + "%";

// Text of a token, its white space made visible.
function spelled(id, tag = "span", extra = "") {
  const shown = make(tag, { class: `token ${extra}`.trim(), title: token(id).text });
  for (const sign of token(id).text) {
    const mark = { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "↵" }[sign] || (token(id).special && sign);
    shown.append(mark ? make("i", {}, mark) : sign);
  }
  return shown;
}

// The picture as runs of ink, row by row: sharp at every size and in print.
function glyph(id) {
  const side = data.side, packed = token(id).picture;
  const svg = make("svg", { class: "glyph", viewBox: `0 0 ${side || 32} ${side || 32}`, role: "img", "aria-label": `picture of ${token(id).text}` });
  if (!packed) return svg;
  const ink = bytes(packed);
  let path = "";
  for (let y = 0; y < side; y++)
    for (let x = 0; x < side; x++) {
      const start = x;
      while (x < side && (ink[(y * side + x) >> 3] >> (7 - (x & 7))) & 1) x++;
      if (x > start) path += `M${start} ${y}h${x - start}v1h${start - x}z`;
    }
  svg.append(make("path", { d: path }));
  return svg;
}

// Values of a code as bars around zero, on a square-root scale; negative ones hang, and are paler.
function strip(id, run, most) {
  const values = new Int8Array(bytes(token(id).code[run]).buffer).subarray(0, most);
  const width = Math.max(values.length, 16), step = width / values.length;
  const svg = make("svg", { class: `strip run${run}`, viewBox: `0 -127 ${width} 254`, preserveAspectRatio: "none", role: "img",
    "aria-label": `code of ${token(id).text} in ${data.runs[run].label}` });
  let up = "", down = "";
  values.forEach((value, i) => {
    const tall = (Math.sign(value) * Math.sqrt(127 * Math.abs(value))).toFixed(1);
    const bar = `M${(i * step).toFixed(2)} 0h${(step * 0.82).toFixed(2)}v${-tall}h${(-step * 0.82).toFixed(2)}z`;
    if (value >= 0) up += bar; else down += bar;
  });
  svg.append(make("path", { class: "up", d: up }), make("path", { class: "down", d: down }));
  return svg;
}

// What the projection keeps of the picture, two grey pixels a byte.
function kept(id) {
  const side = data.side, canvas = make("canvas", { width: side, height: side, role: "img", "aria-label": "what the code keeps of the picture" });
  const pen = canvas.getContext("2d"), picture = pen.createImageData(side, side);
  bytes(token(id).kept).forEach((pair, i) => {
    for (const [place, level] of [[2 * i, pair >> 4], [2 * i + 1, pair & 15]]) {
      const grey = 251 - Math.round((level / 15) * 228);
      picture.data.set([grey, grey, grey, 255], 4 * place);
    }
  });
  pen.putImageData(picture, 0, 0);
  return canvas;
}

// Bits of surprise of the token at a place under a run; null for the first, which is given.
const bits = (run, place) => (place ? -Math.log2(Math.max(text().runs[run].came[place - 1][0], 1e-9)) : null);

function drawTexts() {
  $("texts").replaceChildren(...data.texts.map((one, i) => {
    const radio = make("input", { type: "radio", name: "text", value: i });
    radio.checked = i === at.text;
    radio.addEventListener("change", () => openText(i));
    return make("label", {}, radio, one.title);
  }));
}

function openText(i) {
  at.text = i;
  const ids = text().ids;
  const legible = ids.findIndex((id, place) => place >= ids.length * 0.35 && !token(id).special && /\p{L}/u.test(token(id).text));
  at.token = legible > 0 ? legible : ids.length - 1;
  $("status").textContent = text().cut ? `The first ${ids.length - 1} tokens are shown, ${text().cut} more are left out.` : "";
  drawTokens();
  drawToken();
  drawLens();
}

function drawTokens() {
  const most = Math.max(8, ...text().ids.flatMap((_, place) => data.runs.map((__, run) => bits(run, place) || 0)));
  $("tokens").replaceChildren(...text().ids.map((id, place) => {
    const name = place ? `token ${place}: ${token(id).text}` : "start of the text";
    const tile = make("button", { type: "button", "aria-label": name, class: `tile${token(id).special ? " special" : ""}${token(id).squeezed ? " squeezed" : ""}` });
    const costs = make("span", { class: "costs" });
    data.runs.forEach((one, run) => {
      const cost = bits(run, place), bar = make("b", { class: `run${run}` });
      bar.style.width = `${Math.max(2, (100 * (cost || 0)) / most)}%`;
      bar.style.visibility = cost === null ? "hidden" : "visible";
      if (cost !== null) bar.dataset.tip = `${one.label}: ${cost.toFixed(1)} bits`;
      costs.append(bar);
    });
    tile.append(glyph(id), strip(id, 0, 64), spelled(id), costs);
    tile.addEventListener("click", () => choose(place));
    return tile;
  }));
  const total = data.runs.map((_, run) => text().ids.reduce((sum, __, place) => sum + (bits(run, place) || 0), 0));
  $("cost").replaceChildren("This text costs ", ...data.runs.flatMap((one, run) => [run ? " and " : "",
    make("b", { class: `run${run}` }, one.label), ` ${(total[run] / Math.max(1, text().bytes)).toFixed(2)} bits per byte`]), ".");
}

function choose(place, focus = false) {
  at.token = Math.max(0, Math.min(text().ids.length - 1, place));
  drawToken();
  mark();
  if (focus) $("tokens").children[at.token].focus();
}

// Shows which token is chosen, in the tiles and in the tables; rows that scroll are scrolled to it, the page is not.
function mark() {
  [...$("tokens").children].forEach((tile, place) => {
    tile.setAttribute("aria-pressed", place === at.token);
    tile.tabIndex = place === at.token ? 0 : -1;
  });
  const show = (row, cell) => { row.scrollLeft = cell.offsetLeft - (row.clientWidth - cell.offsetWidth) / 2; };
  show($("tokens"), $("tokens").children[at.token]);
  for (const head of document.querySelectorAll("#lens thead th[data-place]")) {
    head.classList.toggle("on", +head.dataset.place === at.token);
    if (+head.dataset.place === at.token) show(head.closest(".grid"), head);
  }
}

function drawToken() {
  const id = text().ids[at.token], one = token(id);
  $("token-name").replaceChildren(spelled(id));
  const signs = [...one.text];
  const points = one.special ? "a special token, drawn by its name" : signs.slice(0, 6).map((s) => "U+" + s.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")).join(" ") + (signs.length > 6 ? " …" : "");
  const squeezed = one.squeezed ? ` Its ${signs.length} characters share ${data.side} pixels: hardly legible.` : "";
  const pair = [];
  if (one.picture) pair.push(make("div", {}, glyph(id), make("p", {}, `${data.side} × ${data.side} pixels of ${points}.${squeezed}`)));
  if (one.kept) pair.push(make("div", {}, kept(id), make("p", {}, `What the ${data.runs[codedBy()].width} values of its code keep of it.`)));
  $("picture").replaceChildren(...pair);
  $("code").replaceChildren(...data.runs.flatMap((run, i) => [make("p", { class: `who run${i}` }, run.label), strip(id, i),
    make("p", {}, `${run.codes}, ${run.width} values, ${run.trainable ? "changed by training" : "never changed"}`)]));
  drawNear(one);
  drawNext();
  mark();
}

const codedBy = () => Math.max(0, data.runs.findIndex((run) => run.kind === "glyph" && !run.trainable));

function drawNear(one) {
  const heads = ["By code", "By state after the first layer"];
  $("near").replaceChildren(...heads.flatMap((head, kind) => {
    const columns = data.runs.map((run, i) => {
      const pairs = one.near[i][kind];
      if (!pairs) return make("div", {}, make("p", { class: `who run${i}` }, run.label), make("p", {}, "does not apply"));
      const rows = pairs.map(([id, cosine]) => make("li", { class: cosine > 0.99995 && "same", title: `cosine ${cosine}` },
        glyph(id), spelled(id), make("em", {}, cosine > 0.99995 ? "same" : cosine.toFixed(2))));
      return make("div", {}, make("p", { class: `who run${i}` }, run.label), make("ol", { class: "near" }, ...rows));
    });
    return [make("h4", {}, head), make("div", { class: `two${data.runs.length < 2 ? " one" : ""}` }, ...columns)];
  }));
}

function drawNext() {
  const came = text().ids[at.token + 1], two = data.runs.length > 1, rows = text().next[at.token];
  const most = Math.max(...rows.flatMap((row) => row.slice(1)));
  const side = (p, run, place) => {
    const bar = make("span", { class: `bar run${run}` });
    bar.style.width = `calc((100% - 3rem) * ${p / most})`;
    return make("span", { class: `side ${place}` }, bar, percent(p));
  };
  const bars = rows.flatMap(([id, ...ps]) => {
    const name = spelled(id, "span", id === came ? "came" : "");
    return two ? [side(ps[0], 0, "left"), name, side(ps[1], 1, "right")] : [name, side(ps[0], 0, "right")];
  });
  const names = make("div", { class: "names" }, ...data.runs.map((run, i) => make("span", { class: `run${i}` }, run.label)));
  const ranks = came === undefined ? "The text ends here." : "Framed: the token that came, " +
    data.runs.map((run, i) => `choice ${text().runs[i].came[at.token][1].toLocaleString("en")} of ${run.label}`).join(", ") + ".";
  $("next").replaceChildren(names, make("div", { class: `bars${two ? "" : " one"}` }, ...bars), make("p", {}, ranks));
}

function drawLens() {
  $("lens").replaceChildren(...data.runs.flatMap((run, i) => {
    const head = make("tr", {}, make("th", {}, ""), ...text().ids.map((id, place) => spelled(id, "th")));
    [...head.children].slice(1).forEach((cell, place) => { cell.dataset.place = place; cell.scope = "col"; });
    const rows = text().runs[i].lens.map((row, layer) => make("tr", {}, make("th", { scope: "row" }, run.layers[layer]),
      ...row.map(([id, p], place) => {
        const cell = spelled(id, "td", `${id === text().ids[place + 1] ? "came" : ""}${p > 0.75 ? " sure" : ""}`);
        cell.style.setProperty("--p", p);
        cell.removeAttribute("title");
        cell.dataset.tip = `${run.layers[layer]}, after “${token(text().ids[place]).text}”: ${token(id).text} ${percent(p)}`;
        cell.addEventListener("click", () => choose(place));
        return cell;
      })));
    const table = make("table", { class: `run${i}` }, make("thead", {}, head), make("tbody", {}, ...rows));
    return [make("h3", { class: `run${i}` }, run.label), make("div", { class: "grid", tabindex: 0, role: "region", "aria-label": `predictions of ${run.label} by layer` }, table)];
  }));
  mark();
}

$("tokens").addEventListener("keydown", (event) => {
  const move = { ArrowRight: at.token + 1, ArrowLeft: at.token - 1, Home: 0, End: text().ids.length - 1 }[event.key];
  if (move === undefined) return;
  event.preventDefault();
  choose(move, true);
});

const tip = document.body.appendChild(make("div", { id: "tip", hidden: "" }));
document.addEventListener("pointermove", (event) => {
  const told = event.target.closest && event.target.closest("[data-tip]");
  tip.hidden = !told;
  if (!told) return;
  tip.textContent = told.dataset.tip;
  tip.style.left = `${Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${event.clientY + 16}px`;
});

// Typed text is read by the server that sent this page.
if (data.live) {
  $("ask").addEventListener("submit", async (event) => {
    event.preventDefault();
    const typed = $("typed").value;
    if (!typed) return;
    $("status").textContent = "Reading …";
    try {
      const answer = await fetch("look", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ text: typed }) });
      const found = await answer.json();
      if (!answer.ok) throw new Error(found.error.message);
      Object.assign(data.tokens, found.tokens);
      data.texts.unshift(...found.texts);
      drawTexts();
      $("texts").querySelector("input").checked = true;
      openText(0);
    } catch (error) {
      $("status").textContent = `Not read: ${error.message}`;
    }
  });
}
drawTexts();
openText(0);
