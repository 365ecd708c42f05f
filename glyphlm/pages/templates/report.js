"use strict";
// Charts as SVG and sortable tables. A library of charts would be ten times this script, draws on a canvas that prints blurred and does
// not follow light and dark, and would have to be kept up to date in every page; what is needed is lines, bands and marks.
const charts = JSON.parse(document.getElementById("charts").textContent);
const MANY = 8; // arms above which only the reference, the best and the worst are drawn in colour
const DASHES = ["", "8 3", "2 2", "8 3 2 3"];
const MARKS = [ // circle, square, triangles, diamond, cross, plus; 10 wide around the origin
  "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z", "M-3.6-3.6h7.2v7.2h-7.2z", "M0-4.6L4.4 3.4h-8.8z", "M0-5L5 0L0 5L-5 0z", "M0 4.6L4.4-3.4h-8.8z",
  "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z", "M-4-2.2L-2.2-4L0-1.8L2.2-4L4-2.2L1.8 0L4 2.2L2.2 4L0 1.8L-2.2 4L-4 2.2L-1.8 0z"];
const look = (number) => ({ colour: `var(--c${number % 7})`, mark: MARKS[(number + Math.floor(number / 7)) % 7], dash: DASHES[Math.floor(number / 7) % 4] });

function make(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "g", "text", "line", "rect", "clipPath"].includes(name);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== false) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function short(value) {
  for (const [unit, sign] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(value) >= unit) return `${+(value / unit).toPrecision(4)}${sign}`;
  return `${+value.toPrecision(4)}`;
}

// Round numbers between two ends.
function ticks(low, high, count) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) found.push(+tick.toPrecision(12));
  return found;
}

class Chart {
  constructor(place, chart) {
    Object.assign(this, { place, chart, x: Object.keys(chart.x)[0], y: Object.keys(chart.y)[0], zoom: null });
    const last = chart.series.map((one) => { const of = one.marks || one.line; const values = of && of[this.y]; return values ? values[values.length - 1] : Infinity; });
    const ranked = [...last.keys()].filter((i) => isFinite(last[i])).sort((a, b) => last[a] - last[b]);
    const few = chart.series.length <= MANY;
    this.on = chart.series.map((_, i) => few || i === 0 || i === ranked[0] || i === ranked[ranked.length - 1]);
    this.svg = make("svg", { class: "chart", role: "img", tabindex: 0, "aria-label": `${place.dataset.label}; arrow keys read values, plus and minus zoom, 0 shows all` });
    this.tip = make("div", { class: "tip", hidden: "" });
    this.words = make("p", { class: "unseen", "aria-live": "polite" });
    place.replaceChildren(this.controls(), make("div", { class: "frame" }, this.svg, this.tip), this.words, this.legend());
    this.svg.addEventListener("pointermove", (event) => this.move(event));
    this.svg.addEventListener("pointerleave", () => this.hover(null));
    this.svg.addEventListener("pointerdown", (event) => { this.from = this.at(event); });
    this.svg.addEventListener("pointerup", (event) => this.release(event));
    this.svg.addEventListener("dblclick", () => this.show(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(place);
    this.draw();
  }

  controls() {
    const row = make("div", { class: "controls" });
    const choice = (name, titles) => {
      if (Object.keys(titles).length < 2) return;
      const select = make("select", { "aria-label": name === "x" ? "horizontal axis" : "vertical axis" }, ...Object.entries(titles).map(([key, title]) => make("option", { value: key }, title)));
      select.addEventListener("change", () => { this[name] = select.value; this.show(null); });
      row.append(select, name === "y" ? " over " : "");
    };
    choice("y", this.chart.y);
    choice("x", this.chart.x);
    const button = (title, act) => { const one = make("button", { type: "button" }, title); one.addEventListener("click", act); row.append(one); };
    if (this.x !== "depth") {
      button("Second half", () => { const [low, high] = this.range(); this.show([low + (high - low) / 2, high]); });
      button("All", () => this.show(null));
      row.append(make("span", { class: "quiet" }, "drag to zoom"));
    }
    return row;
  }

  legend() {
    const list = make("div", { class: "legend" });
    this.chips = this.chart.series.map((one, i) => {
      const of = look(one.number), chip = make("button", { type: "button", "aria-pressed": `${this.on[i]}`, title: "show or hide; double click: this one alone" });
      const sign = make("svg", { viewBox: "-16 -6 32 12", width: 32, height: 12, "aria-hidden": "true" }, make("path", { d: "M-16 0h32", stroke: of.colour, "stroke-width": 2, "stroke-dasharray": of.dash, fill: "none" }), make("path", { d: of.mark, stroke: of.colour, class: "open" }));
      chip.append(sign, one.arm);
      chip.addEventListener("click", () => this.toggle((_, j) => (j === i ? !this.on[j] : this.on[j])));
      chip.addEventListener("dblclick", () => this.toggle((_, j) => j === i));
      chip.addEventListener("pointerenter", () => this.lift(i));
      chip.addEventListener("pointerleave", () => this.lift(null));
      return chip;
    });
    if (this.chart.series.length > 1) list.append(...this.chips);
    if (this.chart.series.length > 3)
      for (const [title, on] of [["all", true], ["none", false]]) {
        const one = make("button", { type: "button", class: "plain" }, title);
        one.addEventListener("click", () => this.toggle(() => on));
        list.append(one);
      }
    return list;
  }

  toggle(rule) {
    this.on = this.chart.series.map(rule);
    this.chips.forEach((chip, i) => chip.setAttribute("aria-pressed", this.on[i]));
    this.draw();
  }

  show(zoom) { this.zoom = zoom; this.hover(null); this.draw(); }

  range() {
    const every = this.chart.series.flatMap((one) => [one.line, one.marks].flatMap((of) => (of && of[this.x]) || []));
    const low = Math.min(...every), high = Math.max(...every);
    return this.x === "depth" ? [low - 0.4, high + 0.4] : [Math.min(0, low), high];
  }

  // Ends of the vertical axis: of the lines that are on, within what is zoomed to.
  heights(left, right) {
    let low = Infinity, high = -Infinity;
    this.chart.series.forEach((one, i) => {
      if (!this.on[i] && this.chart.series.length <= MANY) return;
      for (const of of [one.line, one.marks]) {
        if (!of || !of[this.y]) continue;
        of[this.x].forEach((x, j) => {
          if (x < left || x > right) return;
          low = Math.min(low, (of[`${this.y}.low`] || of[this.y])[j]);
          high = Math.max(high, (of[`${this.y}.high`] || of[this.y])[j]);
        });
      }
    });
    if (!isFinite(low)) return [0, 1];
    if (!this.zoom) for (const level of Object.keys(this.chart.levels[this.y] || {})) { low = Math.min(low, +level); high = Math.max(high, +level); }
    const air = (high - low) * 0.06 || Math.abs(high) * 0.05 || 1;
    return [low >= 0 && low < (high - low) * 0.35 ? 0 : low - air, high + air];
  }

  draw() {
    const width = Math.max(280, this.place.clientWidth), height = width < 560 ? 300 : 400;
    const [left, right] = this.zoom || this.range(), [bottom, top] = this.heights(left, right);
    const box = { left: 62, right: width - 14, top: 12, bottom: height - 44 };
    const X = (x) => box.left + ((x - left) / (right - left || 1)) * (box.right - box.left);
    const Y = (y) => box.bottom - ((y - bottom) / (top - bottom || 1)) * (box.bottom - box.top);
    Object.assign(this, { left, right, box, X, Y });
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const parts = [];
    for (const y of ticks(bottom, top, 6)) parts.push(make("line", { class: "rule", x1: box.left, x2: box.right, y1: Y(y), y2: Y(y) }), make("text", { class: "tick", x: box.left - 8, y: Y(y) + 4, "text-anchor": "end" }, short(y)));
    const across = this.x === "depth" ? ticks(left, right, 8).filter(Number.isInteger) : ticks(left, right, width < 560 ? 4 : 8);
    for (const x of across) parts.push(make("line", { class: "rule", x1: X(x), x2: X(x), y1: box.top, y2: box.bottom }), make("text", { class: "tick", x: X(x), y: box.bottom + 17, "text-anchor": "middle" }, short(x)));
    const cut = [bottom === 0 || bottom < 0 ? "" : `${this.chart.y[this.y]} from ${short(bottom)}`, left <= 0 || this.x === "depth" ? "" : `${this.chart.x[this.x]} from ${short(left)}`].filter(Boolean);
    parts.push(make("text", { class: "title", x: (box.left + box.right) / 2, y: height - 7, "text-anchor": "middle" }, this.chart.x[this.x]));
    parts.push(make("text", { class: "title", transform: `translate(14 ${(box.top + box.bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, this.chart.y[this.y]));
    if (cut.length) parts.push(make("text", { class: "tick cut", x: box.right, y: height - 7, "text-anchor": "end" }, width < 560 ? "axis not from 0" : `axis not from 0: ${cut.join(", ")}`));
    for (const [level, name] of Object.entries(this.chart.levels[this.y] || {}))
      if (+level >= bottom && +level <= top) parts.push(make("line", { class: "level", x1: box.left, x2: box.right, y1: Y(+level), y2: Y(+level) }), make("text", { class: "tick", x: box.right - 4, y: Y(+level) - 5, "text-anchor": "end" }, name));
    this.lines = this.chart.series.map((one, i) => this.line(one, i));
    const name = `inside-${this.place.dataset.chart}`, air = 5; // marks on the edge stay whole
    const clip = make("clipPath", { id: name }, make("rect", { x: box.left - air, y: box.top - air, width: box.right - box.left + 2 * air, height: box.bottom - box.top + 2 * air }));
    const inside = make("g", { "clip-path": `url(#${name})` }, ...this.lines.filter((_, i) => !this.on[i]), ...this.lines.filter((_, i) => this.on[i]));
    this.cross = make("line", { class: "cross", y1: box.top, y2: box.bottom, visibility: "hidden" });
    this.drag = make("rect", { class: "drag", y: box.top, height: box.bottom - box.top, visibility: "hidden" });
    this.svg.replaceChildren(clip, make("g", {}, ...parts), inside, this.cross, this.drag);
  }

  line(one, i) {
    const of = look(one.number), group = make("g", { class: this.on[i] ? "arm" : this.chart.series.length > MANY ? "arm off" : "arm gone", "data-arm": one.arm });
    const path = (columns) => columns[this.x].map((x, j) => `${j ? "L" : "M"}${this.X(x).toFixed(1)} ${this.Y(columns[this.y][j]).toFixed(1)}`).join("");
    for (const part of ["line", "marks"]) {
      const columns = one[part], low = columns && columns[`${this.y}.low`];
      if (!columns || !columns[this.y] || !columns[this.x]) continue;
      if (low && !one.bars) {
        const up = columns[this.x].map((x, j) => `${j ? "L" : "M"}${this.X(x).toFixed(1)} ${this.Y(columns[`${this.y}.high`][j]).toFixed(1)}`);
        const down = columns[this.x].map((x, j) => `L${this.X(x).toFixed(1)} ${this.Y(low[j]).toFixed(1)}`).reverse();
        group.append(make("path", { d: up.join("") + down.join("") + "z", fill: of.colour, class: "band" }));
      }
      if (part === "line" || one.joined || !one.line) group.append(make("path", { d: path(columns), stroke: of.colour, "stroke-dasharray": of.dash, class: "stroke" }));
      if (part === "marks") columns[this.x].forEach((x, j) => {
        const y = columns[this.y][j];
        if (one.bars && low[j] !== columns[`${this.y}.high`][j]) group.append(make("path", { d: `M${this.X(x)} ${this.Y(low[j])}V${this.Y(columns[`${this.y}.high`][j])}`, stroke: of.colour, class: "stroke" }));
        group.append(make("path", { d: of.mark, stroke: of.colour, class: "open", transform: `translate(${this.X(x).toFixed(1)} ${this.Y(y).toFixed(1)})` }));
      });
    }
    const dots = one.dots && one.dots[this.y] && one.dots[this.x] ? one.dots : null;
    if (dots) group.append(make("path", { d: dots[this.x].map((x, j) => `M${this.X(x).toFixed(1)} ${this.Y(dots[this.y][j]).toFixed(1)}h0`).join(""), stroke: of.colour, class: "dots" }));
    for (const start of one.starts || []) { const x = this.X(one.marks[this.x][start]); group.append(make("path", { d: `M${x} ${this.box.top}V${this.box.bottom}`, stroke: of.colour, class: "start" })); }
    return group;
  }

  lift(i) { this.lines.forEach((line, j) => line.classList.toggle("lifted", j === i)); }

  at(event) {
    const frame = this.svg.getBoundingClientRect(), scale = this.svg.viewBox.baseVal.width / frame.width;
    const x = (event.clientX - frame.left) * scale;
    return this.left + ((x - this.box.left) / (this.box.right - this.box.left)) * (this.right - this.left);
  }

  move(event) {
    const x = this.at(event);
    if (this.from !== undefined && event.buttons) {
      const [a, b] = [this.from, x].map((one) => Math.min(Math.max(this.X(one), this.box.left), this.box.right)).sort((p, q) => p - q);
      for (const [key, value] of Object.entries({ x: a, width: b - a, visibility: "visible" })) this.drag.setAttribute(key, value);
    }
    this.hover(x);
  }

  release(event) {
    const from = this.from, to = this.at(event);
    this.from = undefined;
    this.drag.setAttribute("visibility", "hidden");
    if (from === undefined || Math.abs(this.X(from) - this.X(to)) < 8 || this.x === "depth") return;
    const [low, high] = this.range();
    this.show([Math.max(low, Math.min(from, to)), Math.min(high, Math.max(from, to))]);
  }

  // The values of the arms that are on, next to a place on the horizontal axis.
  near(x) {
    const found = [];
    this.chart.series.forEach((one, i) => {
      if (!this.on[i]) return;
      for (const [part, name] of [["marks", one.line ? "held out" : ""], ["line", "training"]]) {
        const columns = one[part];
        if (!columns || !columns[this.x] || !columns[this.y] || !columns[this.x].length) continue;
        const j = columns[this.x].reduce((best, value, k) => (Math.abs(value - x) < Math.abs(columns[this.x][best] - x) ? k : best), 0);
        const low = columns[`${this.y}.low`], high = columns[`${this.y}.high`];
        found.push({ arm: one.arm, number: one.number, name, x: columns[this.x][j], y: columns[this.y][j], ends: low && low[j] !== high[j] ? ` (${short(low[j])} to ${short(high[j])})` : "" });
      }
    });
    return found;
  }

  hover(x) {
    if (!this.box) return;
    const inside = x !== null && x >= this.left && x <= this.right;
    const found = inside ? this.near(x) : [];
    this.tip.hidden = !found.length;
    this.cross.setAttribute("visibility", found.length ? "visible" : "hidden");
    if (!found.length) return;
    const place = found.reduce((best, one) => (Math.abs(one.x - x) < Math.abs(best.x - x) ? one : best)).x;
    this.cross.setAttribute("x1", this.X(place)); this.cross.setAttribute("x2", this.X(place));
    const shown = found.sort((a, b) => a.y - b.y).slice(0, 14);
    this.tip.replaceChildren(make("b", {}, `${short(place)} ${this.chart.x[this.x]}`), ...shown.map((one) => {
      const row = make("span", {}, make("i"), `${one.arm}${one.name ? `, ${one.name}` : ""}`, make("em", {}, `${one.y.toFixed(3)}${one.ends}`));
      row.firstChild.style.background = `var(--c${one.number % 7})`;
      return row;
    }), ...(found.length > 14 ? [make("span", {}, `and ${found.length - 14} more`)] : []));
    const scale = this.svg.getBoundingClientRect().width / this.svg.viewBox.baseVal.width, across = this.X(place) * scale;
    this.tip.style.left = across > this.place.clientWidth / 2 ? "auto" : `${across + 14}px`;
    this.tip.style.right = across > this.place.clientWidth / 2 ? `${this.place.clientWidth - across + 14}px` : "auto";
    this.place_x = place;
    this.words.textContent = `${short(place)}: ${shown.map((one) => `${one.arm} ${one.y.toFixed(3)}`).join(", ")}`;
  }

  key(event) {
    const step = (this.right - this.left) / 40, now = this.place_x === undefined || this.tip.hidden ? this.left : this.place_x;
    const middle = (this.left + this.right) / 2, [low, high] = this.range();
    const act = {
      ArrowRight: () => this.hover(Math.min(this.right, now + step)), ArrowLeft: () => this.hover(Math.max(this.left, now - step)),
      "+": () => this.show([middle - 10 * step, middle + 10 * step]), "0": () => this.show(null), Escape: () => this.hover(null),
      "-": () => this.show(this.zoom && [Math.max(low, middle - 40 * step), Math.min(high, middle + 40 * step)]),
    }[event.key];
    if (act) { event.preventDefault(); act(); }
  }
}

// A head that is clicked sorts its table by that column, first from small to large.
function sortable(table) {
  const heads = [...table.tHead.rows].map((row) => [...row.cells]);
  const taken = heads.map(() => []);
  heads.forEach((row, i) => {
    let column = 0;
    for (const head of row) {
      while (taken[i][column]) column++;
      for (let down = 0; down < head.rowSpan; down++) for (let right = 0; right < head.colSpan; right++) taken[i + down][column + right] = head;
      if (head.colSpan === 1) withButton(table, head, column);
      column += head.colSpan;
    }
  });
}

function withButton(table, head, column) {
  const button = make("button", { type: "button", class: "sort" });
  button.append(...head.childNodes);
  head.replaceChildren(button);
  const value = (row) => {
    const text = row.cells[column].textContent.trim().replace(/−/g, "-").replace(/,(?=\d{3})/g, "");
    const number = parseFloat(text.replace(/^[^\w+.-]+/, ""));
    return Number.isNaN(number) || /^[A-Za-z]/.test(text) ? [1, text] : [0, number];
  };
  button.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down > 0 ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows].map((row) => [value(row), row]);
    rows.sort(([a], [b]) => a[0] - b[0] || down * (a[1] < b[1] ? -1 : a[1] > b[1] ? 1 : 0));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  });
}

for (const place of document.querySelectorAll("[data-chart]")) new Chart(place, charts[place.dataset.chart]);
document.querySelectorAll("table.sortable").forEach(sortable);
