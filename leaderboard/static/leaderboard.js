/* Sorting, and nothing else: the page is complete without it. */
"use strict";

(() => {
  const announce = document.getElementById("announce");

  /* data-v holds all digits; otherwise what is printed is what is compared. */
  const valueOf = (row, index, text) => {
    if ("last" in row.dataset) return null;
    const cell = row.cells[index];
    if (!cell || cell.colSpan > 1) return null;
    if (text) return cell.textContent.trim() || null;
    const number = parseFloat(cell.dataset.v ?? cell.textContent.replace("−", "-"));
    return Number.isNaN(number) ? null : number;
  };

  /* Rows without a value stay last in both directions. */
  const compare = (text, sign) => (a, b) => {
    if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
    const order = text ? a.value.localeCompare(b.value) : a.value - b.value;
    return sign * order;
  };

  const sort = (table, index, direction) => {
    const header = table.tHead.rows[0].cells[index];
    const text = header.dataset.type === "text";
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => ({ row, value: valueOf(row, index, text) }));
    rows.sort(compare(text, direction === "ascending" ? 1 : -1));
    body.append(...rows.map(({ row }) => row));
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", direction);
    announce.textContent = `Sorted by ${header.innerText.replace(/\s+/g, " ").trim()}, ${direction}`;
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((header, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => {
        const now = header.getAttribute("aria-sort");
        const first = header.dataset.best === "high" ? "descending" : "ascending";
        const turned = now === "ascending" ? "descending" : "ascending";
        sort(table, index, now ? turned : first);
      });
    });
  }
})();
