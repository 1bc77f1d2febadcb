/* Last: everything is there. */
if (select("#payload")) {
  Tables.start();
  Filter.start();
  Drill.start();
  Compare.start();
  const cells = make("button", {
    type: "button", class: "save",
    onclick: async () => Tables.save("cells.json", (await Data.load()).text, "application/json"),
  }, "Save the cells in this page");
  select("nav .files").append(" ", cells);
  State.onApply(() => State.goTo(State.get("at"), "instant"));
  State.apply();
}
