// Sorts tables by the column that is clicked, and the gallery by what is chosen.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.querySelectorAll("th")];
  const sort = (index) => {
    const up = heads[index].getAttribute("aria-sort") !== "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[index].setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => {
      const cell = row.cells[index];
      return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
    };
    const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
    const rows = [...table.tBodies[0].rows].sort((a, b) => (up ? 1 : -1) * order(value(a), value(b)));
    table.tBodies[0].append(...rows);
  };
  heads.forEach((head, index) => {
    head.addEventListener("click", () => sort(index));
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(index); });
  });
}
const by = document.getElementById("by"), down = document.getElementById("down"), gallery = document.getElementById("gallery");
if (by) {
  const arrange = () => {
    const value = (card) => card.getAttribute("data-" + by.value);
    const cards = [...gallery.children].sort((a, b) => {
      const [first, second] = [value(a), value(b)];
      if (first === null || second === null) return (first === null) - (second === null);
      const order = by.value === "key" ? first.localeCompare(second) : Number(first) - Number(second);
      return down.checked ? -order : order;
    });
    gallery.append(...cards);
  };
  by.addEventListener("change", arrange);
  down.addEventListener("change", arrange);
}
