"use strict";
// Everything is in the page: items, their places on the map, their neighbours, and sheets of thumbnails.
const D = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
const place = new Float32Array(bytes(D.places));
const spaces = D.spaces.map((space) => ({ name: space.name, lists: Object.fromEntries(
  Object.entries(space.neighbours).map(([view, text]) => [view, new Int32Array(bytes(text))])) }));
const COUNT = D.ids.length, K = D.k;
const COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee7733", "#009988", "#cc3311",
  "#33bbee", "#997700", "#994455"];
const OTHER = "#9aa0a6";
const VIEW_NAMES = { text: "Near by text", image: "Near by picture", both: "Near by both" };

const urls = [];  // of sheets that were looked at: a short name for megabytes, which every cell would else repeat
function sheetUrl(sheet) {
  return urls[sheet] ??= URL.createObjectURL(new Blob([bytes(D.sheets[sheet].split(",")[1])], { type: "image/webp" }));
}
function element(tag, className, ...content) {
  const made = document.createElement(tag);
  made.className = className;
  made.append(...content);
  return made;
}
function cell(item, side = D.side) {
  const box = element("span", "cell");
  paint(box, item, side);
  return box;
}
function paint(box, item, side) {
  const per = D.perRow, sheet = Math.floor(item / (per * per)), at = item % (per * per), scale = side / D.side;
  box.style.width = box.style.height = side + "px";
  if (sheet >= D.sheets.length || !D.pictured[item]) return;
  box.style.backgroundImage = `url(${sheetUrl(sheet)})`;
  box.style.backgroundSize = `${per * D.side * scale}px auto`;
  box.style.backgroundPosition = `${-(at % per) * side}px ${-Math.floor(at / per) * side}px`;
}
document.querySelectorAll("[data-item]").forEach((box) => {
  paint(box, +box.dataset.item, D.side);
  box.addEventListener("click", () => open(+box.dataset.item));
});

// ---- search
const haystack = D.names.map((name, item) => (name + " " + D.ids[item]).toLowerCase());
function find(text, most = Infinity) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean), found = [];
  if (!words.length) return found;
  const exact = D.ids.indexOf(text.trim());
  if (exact >= 0) found.push(exact);
  for (let item = 0; item < COUNT && found.length < most; item++)
    if (item !== exact && words.every((word) => haystack[item].includes(word))) found.push(item);
  return found;
}

// ---- map
const canvas = $("map"), pen = canvas.getContext("2d"), tip = $("tip");
let view = { x: 0, y: 0, zoom: 1 }, hits = null, chosen = -1, column = D.columns[0], codes = null, pending = false;
const mapped = D.mapped, GRID = 64, grid = new Map();
mapped.forEach((item, at) => {
  const key = Math.floor(place[2 * at] * GRID) * 4096 + Math.floor(place[2 * at + 1] * GRID);
  (grid.get(key) || grid.set(key, []).get(key)).push(at);
});
const size = () => ({ w: canvas.clientWidth, h: canvas.clientHeight });
function project(at) {
  const { w, h } = size(), scale = Math.min(w, h) * 0.94 * view.zoom;
  return [w / 2 + (place[2 * at] - 0.5 - view.x) * scale, h / 2 + (place[2 * at + 1] - 0.5 - view.y) * scale];
}
function unproject(px, py) {
  const { w, h } = size(), scale = Math.min(w, h) * 0.94 * view.zoom;
  return [(px - w / 2) / scale + 0.5 + view.x, (py - h / 2) / scale + 0.5 + view.y];
}
// Dots are written as pixels: 20,000 calls of the canvas take a tenth of a second and more.
let picture = null, pixels = null;
const RGB = COLOURS.concat(OTHER).map((hex) => [5, 3, 1].reduce((sum, at) => sum * 256 + parseInt(hex.slice(at, at + 2), 16), 0));
function disc(radius, opacity) {  // offsets and opacity, 0..255, of the pixels of a dot with a soft rim
  const reach = Math.ceil(radius + 0.5), found = [];
  for (let y = -reach; y <= reach; y++) for (let x = -reach; x <= reach; x++) {
    const cover = Math.min(1, radius + 0.5 - Math.hypot(x, y));
    if (cover > 0) found.push([x, y, Math.round(255 * opacity * cover)]);
  }
  return found;
}
function draw() {
  pending = false;
  const { w, h } = size(), ratio = window.devicePixelRatio || 1;
  const width = Math.round(w * ratio), height = Math.round(h * ratio);
  if (!width || !height) return;
  if (canvas.width !== width || canvas.height !== height || !picture) {
    canvas.width = width; canvas.height = height;
    picture = pen.createImageData(width, height);
    pixels = new Uint32Array(picture.data.buffer);
  }
  pixels.fill(0);
  const radius = Math.min(8, Math.sqrt(view.zoom) * Math.min(5, Math.max(1.6, 120 / Math.sqrt(mapped.length))));
  const scale = Math.min(width, height) * 0.94 * view.zoom;
  const left = width / 2 - (0.5 + view.x) * scale, top = height / 2 - (0.5 + view.y) * scale;
  const dots = (shape, wanted) => {
    for (let at = 0; at < mapped.length; at++) {
      const item = mapped[at], x = Math.round(left + place[2 * at] * scale), y = Math.round(top + place[2 * at + 1] * scale);
      if (x < -30 || y < -30 || x > width + 30 || y > height + 30 || (wanted && !wanted.has(item))) continue;
      const shade = RGB[codes ? codes[item] : COLOURS.length];
      for (const [dx, dy, opacity] of shape) {
        const px = x + dx, py = y + dy, to = py * width + px;
        if (px >= 0 && py >= 0 && px < width && py < height && opacity >= pixels[to] >>> 24)
          pixels[to] = (opacity << 24 | shade) >>> 0;
      }
    }
  };
  dots(disc(radius * ratio, hits ? 0.15 : 0.8), null);
  if (hits) dots(disc((radius + 1.5) * ratio, 1), hits);
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.putImageData(picture, 0, 0);
  const at = mapped.indexOf(chosen);
  if (at >= 0) {
    const [x, y] = project(at);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.strokeStyle = getComputedStyle(document.body).color; pen.lineWidth = 2;
    pen.beginPath(); pen.arc(x, y, radius + 5, 0, 7); pen.stroke();
  }
}
function redraw() { if (!pending) { pending = true; requestAnimationFrame(draw); } }
function zoom(px, py, factor) {
  const before = unproject(px, py);
  view.zoom = Math.min(200, Math.max(0.7, view.zoom * factor));
  const after = unproject(px, py);
  view.x += before[0] - after[0]; view.y += before[1] - after[1];
  redraw();
}
function nearestOnMap(px, py) {
  const [x, y] = unproject(px, py), cx = Math.floor(x * GRID), cy = Math.floor(y * GRID);
  let best = -1, distance = 14 * 14;
  for (let i = cx - 1; i <= cx + 1; i++) for (let j = cy - 1; j <= cy + 1; j++)
    for (const at of grid.get(i * 4096 + j) || []) {
      const [a, b] = project(at), d = (a - px) ** 2 + (b - py) ** 2;
      if (d < distance) { distance = d; best = mapped[at]; }
    }
  return best;
}
const pointers = new Map();
let moved = false, spread = 0;
const local = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, local(event)); moved = false; spread = 0;
});
canvas.addEventListener("pointermove", (event) => {
  const now = local(event), before = pointers.get(event.pointerId);
  if (!before) return hover(now);
  pointers.set(event.pointerId, now);
  const scale = Math.min(size().w, size().h) * 0.94 * view.zoom;
  if (pointers.size === 1) {
    if (Math.hypot(now[0] - before[0], now[1] - before[1]) > 2) moved = true;
    view.x -= (now[0] - before[0]) / scale; view.y -= (now[1] - before[1]) / scale;
    redraw();
  } else {
    const [a, b] = [...pointers.values()], width = Math.hypot(a[0] - b[0], a[1] - b[1]);
    if (spread) zoom((a[0] + b[0]) / 2, (a[1] + b[1]) / 2, width / spread);
    spread = width; moved = true;
  }
});
for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => {
  pointers.delete(event.pointerId); spread = 0;
  if (name === "pointerup" && !moved && !pointers.size) {
    const item = nearestOnMap(...local(event));
    if (item >= 0) open(item);
  }
});
canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoom(...local(event), Math.exp(-event.deltaY / 400)); },
  { passive: false });
canvas.addEventListener("keydown", (event) => {
  const { w, h } = size(), step = 0.1 / view.zoom;
  const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
  if (event.key === "+" || event.key === "-") zoom(w / 2, h / 2, event.key === "+" ? 1.4 : 1 / 1.4);
  else if (moves[event.key]) { view.x += moves[event.key][0]; view.y += moves[event.key][1]; redraw(); }
  else return;
  event.preventDefault();
});
function hover([px, py]) {
  const item = nearestOnMap(px, py);
  tip.hidden = item < 0;
  if (item < 0) return;
  const kind = column ? column.name + ": " + (labelOf(column, item) ?? "none") : D.ids[item];
  tip.replaceChildren(cell(item, 96), element("div", "", D.names[item]), element("div", "soft", kind));
  tip.style.left = Math.min(px + 14, Math.max(0, size().w - 200)) + "px";
  tip.style.top = Math.min(py + 14, Math.max(0, size().h - 180)) + "px";
}
const labelOf = (col, item) => (col.codes[item] < 0 ? null : col.values[col.codes[item]]);
function colour() {
  column = D.columns[$("colour").selectedIndex];
  if (!column) return;
  const counts = new Map();
  column.codes.forEach((code) => code >= 0 && counts.set(code, (counts.get(code) || 0) + 1));
  const common = [...counts].sort((a, b) => b[1] - a[1]).slice(0, COLOURS.length).map(([code]) => code);
  const rank = new Map(common.map((code, at) => [code, at]));
  codes = column.codes.map((code) => rank.get(code) ?? COLOURS.length);
  const entries = common.map((code, at) => [COLOURS[at], column.values[code]]);
  if (counts.size > COLOURS.length) entries.push([OTHER, `${counts.size - COLOURS.length} others`]);
  $("legend").replaceChildren(...entries.map(([shade, name]) => {
    const mark = element("i", "");
    mark.style.background = shade;
    return element("span", "", mark, name);
  }));
  redraw();
}
D.columns.forEach((col) => $("colour").add(new Option(col.name)));
$("colour").addEventListener("change", colour);
$("search").addEventListener("input", () => {
  const text = $("search").value;
  hits = text.trim() ? new Set(find(text)) : null;
  $("hits").textContent = hits ? `${hits.size.toLocaleString("en")} item${hits.size === 1 ? "" : "s"}` : "";
  redraw();
});
$("search").addEventListener("keydown", (event) => { if (event.key === "Enter" && hits && hits.size) open([...hits][0]); });
$("reset").addEventListener("click", () => { view = { x: 0, y: 0, zoom: 1 }; redraw(); });
new ResizeObserver(redraw).observe(canvas);

// ---- gallery
function open(item, jump = true) {
  chosen = item;
  const facts = element("dl", "");
  for (const [name, value] of [["id", D.ids[item]], ["name", D.names[item]], ...D.columns.map((col) => [col.name, labelOf(col, item)])]) {
    if (value != null) facts.append(element("dt", "", name), element("dd", "", value));
  }
  $("item").replaceChildren(cell(item, 128), facts);
  const blocks = [];
  for (const name of Object.keys(VIEW_NAMES)) {
    const sides = element("div", spaces.length > 1 ? "sides two" : "sides");
    const lists = spaces.map((space) => [...space.lists[name].slice(item * K, item * K + K)].filter((other) => other >= 0));
    spaces.forEach((space, at) => {
      const theirs = new Set(lists[1 - at] || []);
      const cards = lists[at].map((other) => card(other, theirs.has(other)));
      const row = element("div", "row", ...(cards.length ? cards : ["no vector"]));
      sides.append(element("div", "", element("div", "soft", space.name), row));
    });
    blocks.push(element("h3", "", VIEW_NAMES[name]), sides);
  }
  $("neighbours").replaceChildren(...blocks);
  if (jump) $("gallery").scrollIntoView({
    behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  redraw();
}
function card(item, kept) {
  const button = element("button", kept ? "card kept" : "card", cell(item, 80), element("span", "", D.names[item]));
  button.type = "button";
  button.title = D.names[item] + (kept ? " (near in both)" : "");
  button.addEventListener("click", () => open(item, false));
  return button;
}
$("pick").addEventListener("change", () => { const [item] = find($("pick").value, 1); if (item !== undefined) open(item, false); });
$("random").addEventListener("click", () => open(Math.floor(Math.random() * COUNT), false));
$("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark" ||
    (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  redraw();
});
colour();
if (COUNT) open(0, false);
