// One volume, slice by slice. A link to #slice-N opens it there, so that a place in it can be passed on.

const viewer = byId("viewer");
const slider = byId("slider");
const profile = byId("profile");
let current = null;

function openSlice(i) {
  const slice = slices[i];
  if (!slice) return;
  const changes = !current || current.volume !== slice.volume || !viewer.open;
  current = slice;
  if (!viewer.open) {
    viewer.showModal();
    slider.focus();
  }
  if (changes) drawVolume(volumes[slice.volume]);
  drawSlice(slice);
}

function drawVolume(volume) {
  byId("viewer-title").textContent = volume.name;
  slider.max = volume.slices.length - 1;
  profile.setAttribute("viewBox", `0 0 ${volume.slices.length} 100`);
  const bars = volume.slices.map((slice, n) => {
    const tall = slice.quarantined ? 0 : Math.max(2, 88 * slice.probability);
    const kind = slice.found ? "with" : "without";
    return svg("rect", { class: `bar ${kind}`, x: n + 0.08, y: 90 - tall, width: 0.84, height: tall });
  });
  const tumours = volume.slices.flatMap((slice, n) =>
    slice.tumour ? [svg("rect", { class: "tumour", x: n, y: 94, width: 1, height: 6 })] : [],
  );
  const marker = svg("rect", { class: "marker", id: "marker", y: 0, width: 1, height: 100 });
  profile.replaceChildren(marker, ...bars, ...tumours);
  if (page.gate !== null) {
    const y = 90 - 88 * page.gate;
    profile.append(svg("line", { class: "gate", x1: 0, x2: volume.slices.length, y1: y, y2: y }));
  }
}

function drawSlice(slice) {
  const volume = volumes[slice.volume];
  const n = volume.slices.indexOf(slice);
  slider.value = n;
  slider.setAttribute("aria-valuetext", `${n + 1} of ${volume.slices.length}, ${slice.name}`);
  byId("marker").setAttribute("x", n);
  const missing = volume.size - volume.slices.length;
  byId("viewer-place").textContent =
    `${n + 1} of ${counted(volume.slices.length)}` + (missing ? ` (${counted(missing)} more are not on this page)` : "");
  byId("stage").replaceChildren(
    drawing(slice, `MRI of ${slice.name} with outlines`, { picture: true, found: true, true: true }),
    tag(slice),
  );
  byId("facts").replaceChildren(...facts(slice));
  byId("comparison").replaceChildren(...(slice.tumour === null ? [] : panels(slice)));
  history.replaceState(null, "", `#slice-${slice.i}`);
}

function facts(slice) {
  const told = [["Slice", slice.name]];
  if (slice.problem) told.push(["Picture", slice.problem]);
  if (!slice.quarantined) {
    const above = page.gate === null ? "" : slice.probability >= page.gate ? ", passes the gate" : ", ends at the gate";
    told.push(["Tumour probability", figure(slice.probability, 3) + above]);
    const share = `${(100 * slice.fraction).toFixed(slice.fraction < 0.01 ? 2 : 1)}%`;
    told.push(["Mask", slice.found ? `${counted(slice.pixels)} pixels, ${share} of the slice` : "none"]);
  }
  if (slice.tumour !== null) {
    told.push(["Truth", slice.tumour ? "tumour" : "no tumour"]);
    told.push(["Dice", figure(slice.dice, 3)]);
  }
  if (slice.path) told.push(["File", slice.path]);
  return told.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
}

// The article's five pictures.
function panels(slice) {
  return [
    ["MRI", { picture: true }],
    ["True mask", { filled: slice.true }],
    ["Predicted mask", { filled: slice.predicted }],
    ["MRI with true mask", { picture: true, true: true }],
    ["MRI with predicted mask", { picture: true, found: true }],
  ].map(([name, shows]) =>
    element("figure", {}, drawing(slice, name, shows), element("figcaption", {}, name)),
  );
}

function step(to) {
  const { slices: all } = volumes[current.volume];
  drawSlice((current = all[Math.min(Math.max(to, 0), all.length - 1)]));
}

viewer.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.id === "brightness") return;
  const all = volumes[current.volume].slices;
  const n = all.indexOf(current);
  const places = {
    ArrowLeft: n - 1, ArrowDown: n - 1, ArrowRight: n + 1, ArrowUp: n + 1,
    PageDown: n - 5, PageUp: n + 5, Home: 0, End: all.length - 1,
  };
  if (event.key in places) step(places[event.key]);
  else if (event.key === "o" || event.key === "O") viewer.classList.toggle("bare");
  else return;
  event.preventDefault();
});
byId("brightness").addEventListener("input", (event) => {
  viewer.style.setProperty("--brightness", event.target.value);
});
slider.addEventListener("input", () => step(Number(slider.value)));
profile.addEventListener("pointerdown", (event) => {
  const box = profile.getBoundingClientRect();
  const { slices: all } = volumes[current.volume];
  step(Math.floor(((event.clientX - box.left) / box.width) * all.length));
});
byId("viewer-close").addEventListener("click", () => viewer.close());
viewer.addEventListener("click", (event) => {
  if (event.target === viewer) viewer.close();
});
viewer.addEventListener("close", () => {
  history.replaceState(null, "", location.pathname + location.search);
});

function followHash() {
  const named = /^#slice-(\d+)$/.exec(location.hash);
  if (named) openSlice(Number(named[1]));
  else if (viewer.open) viewer.close();
}
window.addEventListener("hashchange", followHash);
