// A click on a heading sorts by its column, the best first; another click turns the order round.
// Rows without a number stay at the end.
for (const table of document.querySelectorAll("table.bench")) {
  const heads = [...table.tHead.rows[1].cells];
  const body = table.tBodies[0];
  const first = (head) => head.dataset.first ?? "ascending";
  heads.forEach((head, column) => {
    const key = (row) => {
      if (!column) return row.cells[0].firstChild.textContent;
      const text = row.cells[column].dataset.value;
      return text === "" ? null : Number(text);
    };
    head.querySelector("button").addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const turned = { ascending: "descending", descending: "ascending" };
      const order = before ? turned[before] : first(head);
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].sort((one, two) => {
        const [a, b] = [key(one), key(two)];
        if (a === null || b === null) return (a === null) - (b === null);
        return sign * ((a > b) - (a < b));
      });
      body.append(...rows);
    });
  });
}
// The spider shows the methods that are ticked.
for (const box of document.querySelectorAll(".legend input")) {
  const shape = box.closest(".web").querySelector(`polygon[data-shape="${box.dataset.shape}"]`);
  const show = () => shape.classList.toggle("hidden", !box.checked);
  box.addEventListener("change", show);
  show(); // a browser may remember what was ticked
}
