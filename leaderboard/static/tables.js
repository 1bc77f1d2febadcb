/* Sorting, columns, and saving what a table shows. */
const Tables = (() => {
  const QUIET = ["der", "images", "memory", "settings"]; /* columns that start hidden */
  const sortable = selectAll("table.sortable");
  const boards = selectAll("table.main");
  const heads = (table) => [...table.tHead.rows[0].cells];
  const keyOf = (header) => header.dataset.key ?? header.dataset.attack ?? `${header.cellIndex}`;
  const titleOf = (header) => (header.dataset.title ??= header.firstChild.textContent.trim());

  /* data-v holds all digits; otherwise what is printed first is what is compared. */
  const valueOf = (row, index, text) => {
    const cell = row.cells[index];
    if ("last" in row.dataset || !cell || cell.colSpan > 1 || "last" in cell.dataset) return null;
    if (text) return cell.textContent.trim() || null;
    const printed = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT).nextNode()?.data ?? "";
    const number = parseFloat(cell.dataset.v ?? printed.replace("−", "-"));
    return Number.isNaN(number) ? null : number;
  };

  /* Rows without a value, failed ones among them, stay last in both directions. */
  const compare = (text, sign) => (a, b) => {
    if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
    return sign * (text ? a.value.localeCompare(b.value) : a.value - b.value);
  };

  const sort = (table, header, direction) => {
    const text = header.dataset.type === "text";
    const body = table.tBodies[0];
    const index = header.cellIndex;
    const rows = [...body.rows].map((row) => ({ row, value: valueOf(row, index, text) }));
    rows.sort(compare(text, direction === "ascending" ? 1 : -1));
    body.append(...rows.map(({ row }) => row));
    for (const other of heads(table)) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", direction);
  };

  const remember = (table, header, direction) => {
    const others = State.list("sort").filter((entry) => !entry.startsWith(`${table.id}:`));
    State.set({ sort: [...others, `${table.id}:${direction[0]}:${keyOf(header)}`] });
  };

  const turn = (table, header) => {
    const now = header.getAttribute("aria-sort");
    const first = header.dataset.best === "high" ? "descending" : "ascending";
    const turned = now === "ascending" ? "descending" : "ascending";
    const direction = now ? turned : first;
    sort(table, header, direction);
    remember(table, header, direction);
    announce(`Sorted by ${titleOf(header)}, ${direction}; rows without a value last`);
  };

  const addButtons = (table) => {
    for (const header of heads(table)) {
      titleOf(header);
      const button = make("button", { type: "button", onclick: () => turn(table, header) });
      button.append(...header.childNodes);
      header.append(button);
    }
  };

  const restoreSort = () => {
    const asked = new Map(State.list("sort").map((entry) => {
      const [id, direction, ...key] = entry.split(":");
      return [id, { direction, key: key.join(":") }];
    }));
    for (const table of sortable) {
      const want = asked.get(table.id);
      const header = want && heads(table).find((candidate) => keyOf(candidate) === want.key);
      if (header) sort(table, header, want.direction === "a" ? "ascending" : "descending");
      else if (select("[aria-sort]", table)) unsort(table);
    }
  };
  const unsort = (table) => {
    for (const header of heads(table)) header.removeAttribute("aria-sort");
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => a.dataset.place - b.dataset.place);
    table.tBodies[0].append(...rows);
  };

  /* Columns of the boards: shown unless quiet, or as the link says. */
  const shows = (key) => (QUIET.includes(key) ? State.list("show").includes(key) : !State.list("hide").includes(key));
  const showColumns = () => {
    for (const table of boards) {
      const hidden = heads(table).map((header) => Boolean(header.dataset.key) && !shows(header.dataset.key));
      for (const row of table.rows) {
        for (const cell of row.cells) {
          if (cell.colSpan > 1 || "span" in cell.dataset) {
            cell.dataset.span ??= cell.colSpan;
            cell.colSpan = hidden.filter((gone) => !gone).length - 1;
          } else cell.hidden = hidden[cell.cellIndex];
        }
      }
    }
    for (const box of selectAll("#column-list input")) box.checked = shows(box.name);
  };
  const listColumns = () => {
    const known = new Map(boards.flatMap(heads).map((header) => [header.dataset.key, titleOf(header)]));
    known.delete("defense");
    for (const [key, title] of known) {
      const box = make("input", { type: "checkbox", name: key });
      box.addEventListener("change", () => {
        const kind = QUIET.includes(key) ? "show" : "hide";
        const rest = State.list(kind).filter((other) => other !== key);
        State.set({ [kind]: box.checked === (kind === "show") ? [...rest, key] : rest });
        showColumns();
      });
      select("#column-list").append(make("label", {}, box, ` ${title}`));
    }
  };

  const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const asCsv = (table) => selectAll("tr", table).filter((row) => !row.hidden).map((row) =>
    [...row.cells].filter((cell) => !cell.hidden)
      .map((cell) => quoted(cell.dataset.v ?? cell.dataset.title ?? cell.innerText.replace(/\s+/g, " ").trim()))
      .join(",")).join("\n");
  const save = (name, text, type) => {
    const address = URL.createObjectURL(new Blob([text], { type }));
    make("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  };

  const start = () => {
    for (const table of sortable) {
      [...table.tBodies[0].rows].forEach((row, place) => { row.dataset.place = place; });
      addButtons(table);
    }
    for (const table of boards) {
      const button = make("button", {
        type: "button", class: "save",
        onclick: () => save(`${table.id}.csv`, `${asCsv(table)}\n`, "text/csv"),
      }, "Save this table as CSV");
      table.closest("section").querySelector("h2").after(button);
    }
    listColumns();
    select("#choose-columns").addEventListener("click", () => select("#columns").showModal());
    State.onApply(() => { restoreSort(); showColumns(); });
  };
  return { start, save, boards, heads, showColumns };
})();
