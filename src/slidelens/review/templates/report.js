"use strict";
(() => {
  const find = (query, within = document) => [...within.querySelectorAll(query)];
  const list = document.getElementById("list");
  if (!list) return;
  const rows = find("tbody tr", list);
  const cases = new Map(find("article.case").map((one) => [one.id, one]));
  const field = (name) => document.getElementById("f-" + name);
  const shown = () => rows.filter((row) => !row.hidden).map((row) => cases.get(row.dataset.case));

  // Texts to search in are made once, when somebody first searches.
  let texts = null;
  const text = (id) => {
    texts ??= new Map([...cases].map(([key, one]) => [key, one.textContent.toLowerCase()]));
    return texts.get(id);
  };

  const filter = () => {
    const [model, kind, state, words] = ["model", "kind", "state", "text"].map((n) => field(n).value);
    let count = 0;
    for (const row of rows) {
      const one = cases.get(row.dataset.case);
      const fits =
        (!model || one.dataset.models.split("\n").includes(model)) &&
        (!kind || one.dataset.kinds.split(" ").includes(kind)) &&
        (!state || one.dataset.state.split(" ").includes(state)) &&
        (!words || text(one.id).includes(words.toLowerCase()));
      row.hidden = one.hidden = !fits;
      count += fits;
    }
    field("count").value = count === rows.length
      ? `${count} slide${count === 1 ? "" : "s"}` : `${count} of ${rows.length} slides`;
  };
  for (const name of ["model", "kind", "state", "text"]) field(name).addEventListener("input", filter);

  // Sorting moves the slides' pages too, so that going through them follows the list.
  const body = list.tBodies[0];
  const section = document.getElementById("cases");
  const value = (row, column) => row.cells[column].textContent.trim();
  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];  // all of it, not what a name such as 2021-03 begins with
    return Number.isNaN(x) || Number.isNaN(y)
      ? a.localeCompare(b, undefined, { numeric: true }) : x - y;
  };
  find("thead th", list).forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      find("thead th", list).forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      rows.sort((a, b) => (up ? 1 : -1) * compare(value(a, column), value(b, column)));
      body.append(...rows);
      section.append(...rows.map((row) => cases.get(row.dataset.case)));
    });
  });

  let current = -1;
  const go = (step) => {
    const all = shown();
    if (!all.length) return;
    const at = all.indexOf(cases.get(document.activeElement?.closest(".case")?.id));
    current = Math.min(Math.max((at < 0 ? current : at) + step, 0), all.length - 1);
    all[current].scrollIntoView({ block: "start" });
    all[current].focus({ preventScroll: true });
  };
  const keys = {
    j: () => go(1),
    k: () => go(-1),
    "/": () => field("text").focus(),
    i: () => { document.getElementById("errors").scrollIntoView(); field("model").focus({ preventScroll: true }); },
  };
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input[type=search], select, textarea");
    if (event.key === "Escape" && typing) event.target.blur();
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !field("keys").checked) return;
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });
  filter();
})();
