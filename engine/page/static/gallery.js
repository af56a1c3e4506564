// All slices as cards. Only the rows in view are drawn, so that thousands scroll as smoothly as a few.

const GAP = 14;
const CAPTION = 62;
const AHEAD = 500; // pixels drawn above and below the window

const form = byId("filters");
const grid = byId("grid");
const drawn = new Map(); // place in `listed` -> card
let listed = slices;
let active = 0; // the one card that Tab reaches; arrows move on from it
let layout = { columns: 1, side: 0, row: 1 };

const KINDS = [
  ["all", "All", () => true],
  ["found", "With a mask", (slice) => slice.found],
  ["passed", "Passed the gate, no mask", (slice) => !slice.found && page.gate !== null && slice.probability >= page.gate],
  ["gated", "Ended at the gate", (slice) => !slice.quarantined && page.gate !== null && slice.probability < page.gate],
  ["missed", "Missed", (slice) => slice.missed],
  ["alarm", "False alarms", (slice) => slice.alarm],
  ["poor", "Dice below 0.5", (slice) => slice.tumour && slice.found && slice.dice !== null && slice.dice < 0.5],
  ["tumour", "With a tumour", (slice) => slice.tumour],
  ["lost", "Quarantined", (slice) => slice.quarantined],
];

const SORTS = {
  probability: (slice) => slice.probability,
  gate: (slice) => (slice.quarantined ? null : Math.abs(slice.probability - (page.gate ?? 0.5))),
  pixels: (slice) => slice.pixels || null,
  dice: (slice) => slice.dice,
};

function offerKinds() {
  for (const [value, label, fits] of KINDS) {
    const count = slices.filter(fits).length;
    if (!count && !(page.truth && ["missed", "alarm"].includes(value))) continue;
    const box = element("input", { type: "radio", name: "kind", value, defaultChecked: value === "all" });
    byId("kinds").append(element("label", {}, box, element("span", {}, `${label} `, element("i", {}, counted(count)))));
  }
  const choice = form.elements.volume;
  for (const volume of volumes) choice.append(element("option", { value: volume.number }, volume.name));
}

function list() {
  const values = Object.fromEntries(new FormData(form));
  const [, , fits] = KINDS.find(([kind]) => kind === (values.kind ?? "all"));
  const [low, high, pixels] = [values.low, values.high, values.pixels].map((text) => (text === "" ? null : Number(text)));
  const text = values.text.trim().toLowerCase();
  listed = slices.filter(
    (slice) =>
      fits(slice) &&
      (values.volume === "" || slice.volume === Number(values.volume)) &&
      (low === null || (slice.probability !== null && slice.probability >= low)) &&
      (high === null || (slice.probability !== null && slice.probability <= high)) &&
      (pixels === null || slice.pixels >= pixels) &&
      (!text || `${page.volumes[slice.volume]}/${slice.name}`.toLowerCase().includes(text)),
  );
  sort(values.sort);
  active = 0;
  grid.replaceChildren();
  drawn.clear();
  byId("none").hidden = listed.length > 0;
  byId("count").textContent = `${counted(listed.length)} of ${counted(slices.length)} slices`;
  measure();
}

function sort(by) {
  if (by === "run") return;
  const value = SORTS[by.slice(0, -1)];
  const sign = by.endsWith("-") ? -1 : 1;
  const keyed = listed.map((slice) => [value(slice), slice]);
  keyed.sort(([a], [b]) => (a === null) - (b === null) || sign * (a - b)); // what has no value stands last
  listed = keyed.map(([, slice]) => slice);
}

function measure() {
  const width = grid.clientWidth;
  const least = width < 520 ? 140 : 186;
  const columns = Math.max(1, Math.floor((width + GAP) / (least + GAP)));
  const side = (width - GAP * (columns - 1)) / columns;
  layout = { columns, side, row: side + CAPTION + GAP };
  grid.style.height = `${Math.max(0, Math.ceil(listed.length / columns) * layout.row - GAP)}px`;
  for (const [place, card] of drawn) put(card, place);
  paint();
}

function put(card, place) {
  card.style.width = `${layout.side}px`;
  card.style.left = `${(place % layout.columns) * (layout.side + GAP)}px`;
  card.style.top = `${Math.floor(place / layout.columns) * layout.row}px`;
}

function paint() {
  const above = -grid.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor((above - AHEAD) / layout.row)) * layout.columns;
  const rows = Math.ceil((above + window.innerHeight + AHEAD) / layout.row);
  const last = Math.min(listed.length, Math.max(0, rows) * layout.columns);
  const wanted = new Set([active]);
  for (let place = first; place < last; place++) wanted.add(place);
  for (const [place, card] of drawn) {
    if (wanted.has(place)) continue;
    card.remove();
    drawn.delete(place);
  }
  // In the order of places, and without moving a card that is there: it may have the focus.
  let next = grid.firstElementChild;
  for (const place of [...wanted].sort((a, b) => a - b)) {
    if (place >= listed.length) break;
    if (drawn.has(place)) {
      next = drawn.get(place).nextElementSibling;
      continue;
    }
    const card = makeCard(listed[place], place);
    drawn.set(place, card);
    grid.insertBefore(card, next);
  }
}

function makeCard(slice, place) {
  const words = [slice.quarantined ? slice.problem : `p ${figure(slice.probability)}`];
  if (slice.tumour && slice.found) words.push(`Dice ${figure(slice.dice)}`);
  if (slice.found) words.push(`${counted(slice.pixels)} px`);
  const volume = page.volumes[slice.volume];
  const link = element(
    "a",
    { href: `#slice-${slice.i}`, tabIndex: place === active ? 0 : -1, title: slice.path || slice.name },
    drawing(slice, "", { picture: true, found: true, true: true }),
    tag(slice),
    element("span", { className: "name" }, shortName(slice.name, volume)),
    element("span", { className: "of" }, volume),
    element("span", { className: "facts" }, words.join(" · ")),
  );
  link.querySelector("svg").setAttribute("aria-hidden", "true");
  const card = element("div", { className: "card", role: "listitem" }, link);
  card.setAttribute("aria-setsize", listed.length);
  card.setAttribute("aria-posinset", place + 1);
  put(card, place);
  return card;
}

// Without what it repeats of its volume, so that its number is not what is cut off.
function shortName(name, volume) {
  const folder = volume.split("/").pop();
  return name.startsWith(folder) && name.length > folder.length ? `…${name.slice(folder.length)}` : name;
}

function moveTo(place) {
  const before = drawn.get(active);
  active = Math.min(Math.max(place, 0), listed.length - 1);
  paint();
  if (before) before.firstElementChild.tabIndex = -1;
  const link = drawn.get(active).firstElementChild;
  link.tabIndex = 0;
  link.focus({ preventScroll: true });
  link.scrollIntoView({ block: "nearest" });
}

grid.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const screen = Math.max(1, Math.floor(window.innerHeight / layout.row)) * layout.columns;
  const steps = {
    ArrowLeft: -1, ArrowRight: 1, ArrowUp: -layout.columns, ArrowDown: layout.columns,
    PageUp: -screen, PageDown: screen, Home: -active, End: listed.length,
  };
  if (!(event.key in steps)) return;
  event.preventDefault();
  moveTo(active + steps[event.key]);
});
grid.addEventListener("focusin", (event) => {
  const card = event.target.closest(".card");
  const place = Number(card.getAttribute("aria-posinset")) - 1;
  if (place === active) return;
  const before = drawn.get(active);
  if (before) before.firstElementChild.tabIndex = -1;
  active = place;
  card.firstElementChild.tabIndex = 0;
});
form.addEventListener("input", ({ target }) => {
  if (!target.dataset.hides && target.type !== "select-one") list();
});
form.addEventListener("change", ({ target }) => {
  if (target.type === "select-one") list(); // not every browser tells of these as input
});
form.addEventListener("reset", () => setTimeout(list));
form.addEventListener("submit", (event) => event.preventDefault());
for (const box of form.querySelectorAll("[data-hides]")) {
  const show = () => document.body.classList.toggle(`hide-${box.dataset.hides}`, !box.checked);
  box.addEventListener("input", show);
  form.addEventListener("reset", () => setTimeout(show));
}

let asked = false;
function paintSoon() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    paint();
  });
}
window.addEventListener("scroll", paintSoon, { passive: true });
