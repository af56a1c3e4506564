// The table of volumes sorts by any column; then the page is ready.

const table = byId("volume-table");

function sortTable(column, head) {
  const descending = head.getAttribute("aria-sort") !== "descending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = table.tBodies[0];
  const value = (row) => row.cells[column].textContent.trim().replaceAll(",", "");
  const compare = (a, b) =>
    column === 0 ? a.localeCompare(b, "en", { numeric: true }) : (a === "–") - (b === "–") || Number(a) - Number(b);
  const rows = [...body.rows].sort((a, b) => (descending ? -1 : 1) * compare(value(a), value(b)));
  body.append(...rows);
}

[...table.tHead.rows[0].cells].forEach((head, column) => {
  const button = element("button", { type: "button" }, head.textContent);
  button.addEventListener("click", () => sortTable(column, head));
  head.replaceChildren(button);
});

document.documentElement.classList.add("scripted");
offerKinds();
list();
new ResizeObserver(measure).observe(grid.parentElement);
followHash();
