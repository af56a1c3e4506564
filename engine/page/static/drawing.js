// A slice as SVG: its picture, its masks filled or as outlines. Colours and strokes are in page.css.

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// `shows` has any of: picture, found, true (outlines), filled (a path).
function drawing(slice, label, shows) {
  const box = `0 0 ${slice.width} ${slice.height}`;
  const made = svg("svg", { class: "slice", viewBox: box, role: "img", "aria-label": label });
  if (shows.picture) made.append(shown(slice));
  if (shows.filled) made.append(svg("path", { class: "filled", d: shows.filled }));
  const outlines = [["found", slice.predicted], ["true", slice.true]].filter(([kind, path]) => shows[kind] && path);
  for (const layer of ["halo", "line"]) {
    for (const [kind, path] of outlines) made.append(svg("path", { class: `${layer} ${kind}`, d: path }));
  }
  return made;
}

function shown(slice) {
  const source = picture(slice);
  if (source) return svg("image", { width: slice.width, height: slice.height, href: source });
  const text = svg("text", { class: "nothing", x: "50%", y: "50%" }, "no picture");
  text.append(svg("title", {}, slice.problem));
  return text;
}

function tag(slice) {
  if (slice.missed) return element("b", { className: "tag miss" }, "missed");
  if (slice.alarm) return element("b", { className: "tag alarm" }, "false alarm");
  if (slice.quarantined) return element("b", { className: "tag lost" }, "quarantined");
  return "";
}
