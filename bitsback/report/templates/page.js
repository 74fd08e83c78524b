"use strict";
const data = JSON.parse(document.getElementById("numbers").textContent);
const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);

function shown(bits) {
  const size = Math.abs(bits);
  if (size >= 1e6) return bits.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 4 });
  const digits = size >= 100 || Number.isInteger(bits) ? 0 : size >= 10 ? 1 : 2;
  return bits.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−");
}

/* A plain number, with a minus sign that is one. */
function number(value, digits, more) {
  return value.toLocaleString("en", { maximumSignificantDigits: digits, ...more }).replace("-", "−");
}

const raised = (n) => String(n).replace(/[-0-9]/g, (c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]);

function draw(parent, tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

function path(points) {
  return points.map(([x, y], i) => (i ? "L" : "M") + x.toFixed(1) + " " + y.toFixed(1)).join("");
}

/* Bars: one row for each named number; a bar that does not fit is cut, and its number says so. */
function setBars(root, row, longest) {
  for (const bar of root.querySelectorAll("[data-bar]")) {
    const bits = row[bar.dataset.bar], output = bar.querySelector("output");
    bar.querySelector("i").style.width = Math.min(100, (100 * Math.max(0, bits)) / longest) + "%";
    output.textContent = shown(bits) + (bits > longest ? " →" : "");
    output.dataset.bits = bits;
  }
}

function octave(factor) {
  const k = Math.log2(factor);
  if (Math.abs(k - Math.round(k)) > 1e-9) return number(factor, 2);
  return k >= 0 ? String(2 ** k) : "1/" + 2 ** -k;
}

/* The width explorer: two bells, the bars, and a point on the curve. */
function widthExplorer() {
  const rows = data.widths, slider = byId("width-slider"), picker = byId("bell-picker");
  const trained = rows.findIndex((row) => row.factor === 1);
  const longest = 1.25 * Math.max(...rows.map((row) => row.gross_weight_bits), rows[trained].net_bits);
  data.bells.forEach((bell, i) => picker.append(new Option(bell.name, i)));
  const moveMarker = widthCurve(byId("width-curve"), rows, trained);
  function move() {
    const place = Number(slider.value), row = rows[place], more = row.net_bits - rows[trained].net_bits;
    byId("width-factor").textContent = place === trained ? "× 1, as trained" : "× " + octave(row.factor);
    slider.setAttribute("aria-valuetext", byId("width-factor").textContent);
    setBars(byId("width-bars"), row, longest);
    byId("width-said").textContent = place === trained
      ? `As trained the description costs ${shown(row.net_bits)} bits.`
      : `Net ${shown(row.net_bits)} bits: ${shown(Math.abs(more))} bits ${more > 0 ? "more" : "less"} than as trained.`;
    moveMarker(place);
    if (data.bells.length) drawBells(byId("bells"), data.bells[Number(picker.value)], row.factor, place);
  }
  slider.addEventListener("input", move);
  picker.addEventListener("change", move);
  byId("width-reset").addEventListener("click", () => { slider.value = trained; move(); });
  move();
}

function drawBells(svg, bell, factor, place) {
  svg.replaceChildren();
  const left = 8, right = 352, base = 170, height = 140, points = bell.density.length;
  const toX = (w) => left + ((right - left) * (w + bell.reach)) / (2 * bell.reach);
  const peak = Math.max(...bell.density), std = bell.std * factor;
  const prior = bell.density.map((p, i) => [left + ((right - left) * i) / (points - 1), base - (height * p) / peak]);
  const posterior = Array.from({ length: 241 }, (_, i) => {
    const w = -bell.reach + (2 * bell.reach * i) / 240;
    return [toX(w), base - height * Math.exp(-0.5 * ((w - bell.mean) / std) ** 2)];
  });
  draw(svg, "path", { d: path(prior) + `L${right} ${base}L${left} ${base}Z`, fill: "var(--prior)", "fill-opacity": 0.18 });
  draw(svg, "path", { d: path(prior), fill: "none", stroke: "var(--prior)", "stroke-width": 2, "stroke-dasharray": "6 4" });
  draw(svg, "path", { d: path(posterior) + `L${right} ${base}L${left} ${base}Z`, fill: "var(--posterior)", "fill-opacity": 0.25 });
  draw(svg, "path", { d: path(posterior), fill: "none", stroke: "var(--posterior)", "stroke-width": 2, id: "posterior-bell" });
  draw(svg, "line", { x1: left, x2: right, y1: base, y2: base, stroke: "var(--line)" });
  for (const w of [-bell.reach, 0, bell.reach]) {
    const anchor = w < 0 ? "start" : w > 0 ? "end" : "middle";
    draw(svg, "text", { x: toX(w), y: base + 16, "text-anchor": anchor, class: "muted" }, number(w, 2));
  }
  const meanLeft = bell.mean < 0;
  draw(svg, "text", { x: meanLeft ? right : left, y: 16, "text-anchor": meanLeft ? "end" : "start", class: "muted" }, "– – prior");
  draw(svg, "text", { x: meanLeft ? right : left, y: 33, "text-anchor": meanLeft ? "end" : "start", style: "fill: var(--posterior)" }, "— posterior");
  const bits = bell.bits[place];
  byId("bell-said").textContent = `Mean ${number(bell.mean, 3)}, std ${number(std, 3)}. This weight alone: gross ` +
    `${shown(bits.gross_weight_bits)} bits − refund ${shown(bits.refund_bits)} = net ${shown(bits.net_weight_bits)} bits.`;
}

function widthCurve(svg, rows, trained) {
  const left = 58, right = 342, top = 14, base = 190;
  const lines = [["net_bits", "net total", "var(--net)", 3, ""], ["data_bits", "data", "var(--data)", 1.5, "5 3"],
    ["net_weight_bits", "net weights", "var(--hyper)", 1.5, "2 3"]];
  const positive = rows.flatMap((row) => lines.map(([name]) => row[name])).filter((bits) => bits > 0);
  const low = Math.floor(Math.log10(Math.min(...positive))), high = Math.ceil(Math.log10(Math.max(...positive)));
  const toX = (i) => left + ((right - left) * i) / (rows.length - 1);
  const toY = (bits) => base - ((base - top) * (Math.log10(Math.max(bits, 10 ** low)) - low)) / (high - low || 1);
  const every = Math.ceil((high - low) / 5) || 1;
  for (let power = low; power <= high; power += every) {
    draw(svg, "line", { x1: left, x2: right, y1: toY(10 ** power), y2: toY(10 ** power), stroke: "var(--line)", "stroke-width": 0.7 });
    draw(svg, "text", { x: left - 6, y: toY(10 ** power) + 4, "text-anchor": "end", class: "muted" }, number(10 ** power, 3, { notation: power > 3 ? "compact" : "standard" }));
  }
  rows.forEach((row, i) => {
    if (Number.isInteger(Math.log2(row.factor) / 2)) draw(svg, "text", { x: toX(i), y: base + 17, "text-anchor": "middle", class: "muted" }, "×" + octave(row.factor));
  });
  draw(svg, "line", { x1: toX(trained), x2: toX(trained), y1: top, y2: base, stroke: "var(--ink)", "stroke-dasharray": "3 3" });
  draw(svg, "text", { x: toX(trained) + 5, y: top + 8, class: "muted" }, "trained");
  for (const [name, , colour, width, dash] of lines) {
    draw(svg, "path", { d: path(rows.map((row, i) => [toX(i), toY(row[name])])), fill: "none", stroke: colour, "stroke-width": width, "stroke-dasharray": dash });
  }
  let x = left;
  for (const [, label, colour, width, dash] of lines) {
    draw(svg, "line", { x1: x, x2: x + 22, y1: base + 36, y2: base + 36, stroke: colour, "stroke-width": width, "stroke-dasharray": dash });
    draw(svg, "text", { x: x + 27, y: base + 40 }, label);
    x += 45 + 7 * label.length;
  }
  const marker = draw(svg, "circle", { r: 6, fill: "var(--paper)", stroke: "var(--net)", "stroke-width": 3, id: "width-marker" });
  return (place) => { marker.setAttribute("cx", toX(place)); marker.setAttribute("cy", toY(rows[place].net_bits)); };
}

/* The grid explorer: gross and refund grow together, net stands still. */
function gridExplorer() {
  const rows = data.grid, slider = byId("grid-slider"), longest = rows[rows.length - 1].gross_weight_bits;
  function move() {
    const row = rows[Number(slider.value)], exponent = Math.log2(row.grid_step);
    const step = Number.isInteger(exponent) ? "2" + raised(exponent) : number(row.grid_step, 2);
    byId("grid-step").textContent = step;
    slider.setAttribute("aria-valuetext", "step " + step);
    setBars(byId("grid-bars"), row, longest);
    const each = (name) => shown(row[name] / data.ledger.weights);
    byId("grid-said").textContent = `A weight is written with ${each("gross_weight_bits")} bits; ${each("refund_bits")} of them come back, ${each("net_weight_bits")} stay paid.`;
  }
  slider.addEventListener("input", move);
  move();
}

if (data.widths.length) widthExplorer();
if (data.grid.length) gridExplorer();
