// Sorts the table by a click on a column's name, opens the section that the address names, and opens all for printing.
const table = document.querySelector(".rows");
const key = (row, column) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
const compare = (a, b) => (isNaN(a) || isNaN(b) || a === "" || b === "" ? a.localeCompare(b) : a - b);
table.querySelectorAll("thead th").forEach((head, column) => {
  head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const filled = (row) => key(row, column) !== "";  // rows without a value stay last
    const rows = [...table.tBodies[0].rows].sort((a, b) =>
      filled(a) !== filled(b) ? filled(b) - filled(a) : compare(key(a, column), key(b, column)) * (down ? -1 : 1));
    table.tBodies[0].append(...rows);
  });
});

function open() {
  const named = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (named?.matches("details")) {
    named.open = true;
    named.scrollIntoView();
  }
}
addEventListener("hashchange", open);
open();

addEventListener("beforeprint", () => document.querySelectorAll("details:not([open])").forEach((each) => {
  each.open = true;
  each.dataset.closed = "";
}));
addEventListener("afterprint", () => document.querySelectorAll("[data-closed]").forEach((each) => {
  each.open = false;
  delete each.dataset.closed;
}));
