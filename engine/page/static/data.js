// What the page knows of its slices, and their pictures, which are taken apart only when they are shown.

const byId = (id) => document.getElementById(id);
const page = JSON.parse(byId("slices").textContent);
const slices = page.columns.name.map((_, i) => {
  const slice = { i };
  for (const [name, column] of Object.entries(page.columns)) slice[name] = column[i];
  slice.quarantined = slice.probability === null;
  slice.missed = slice.tumour === 1 && !slice.found;
  slice.alarm = slice.tumour === 0 && slice.found === 1;
  return slice;
});
const volumes = page.volumes.map((name, number) => ({ name, number, size: page.sizes[number], slices: [] }));
for (const slice of slices) volumes[slice.volume].slices.push(slice);

const blocks = new Map();

function picture(slice) {
  const number = Math.floor(slice.i / page.block);
  if (!blocks.has(number)) blocks.set(number, byId(`pictures-${number}`).textContent.split("\n"));
  const data = blocks.get(number)[slice.i % page.block];
  return data && `data:image/webp;base64,${data}`;
}

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const counted = (number) => number.toLocaleString("en-US");
const figure = (number, digits = 2) => (number === null ? "–" : number.toFixed(digits));
