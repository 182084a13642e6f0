// Show one element of HTML, made and escaped in Python; report what is selected by click or key, and mark parts.
function render({ model, el }) {
  el.classList.add("medrefl", "medrefl-pane");
  el.dataset.lmSuppressShortcuts = "true"; // otherwise JupyterLab uses the arrow keys to change the cell
  el.setAttribute("role", "region");
  el.setAttribute("aria-label", model.get("label"));
  const steps = () => [...el.querySelectorAll("[role=treeitem]")];
  const step = (pick) => steps().find((item) => item.dataset.pick === pick);

  const select = () => {
    const chosen = step(model.get("current"));
    for (const item of steps()) {
      item.setAttribute("aria-selected", item === chosen);
      item.setAttribute("tabindex", item === chosen ? 0 : -1);
    }
    if (chosen) intoView(chosen);
  };
  // Scroll inside this element only: scrollIntoView would scroll the notebook too.
  const intoView = (item) => {
    const [outer, inner] = [el.getBoundingClientRect(), item.getBoundingClientRect()];
    if (inner.left < outer.left || inner.right > outer.right) el.scrollLeft += inner.left - outer.left - 80;
    if (inner.top < outer.top || inner.bottom > outer.bottom) el.scrollTop += inner.top - outer.top - 80;
  };
  const mark = () => {
    const marks = model.get("marks");
    for (const part of el.querySelectorAll("[data-mark]")) {
      for (const name of ["chosen", "rejected", "left"]) {
        part.classList.toggle(name, (marks[part.dataset.mark] ?? "").split(" ").includes(name));
      }
    }
  };
  const show = () => {
    el.innerHTML = model.get("html");
    el.scrollTop = el.scrollLeft = 0;
    select();
    mark();
  };
  const pick = (part) => {
    if (part.getAttribute("role") === "treeitem") {
      model.set("current", part.dataset.pick);
      select();
      part.focus({ preventScroll: true });
    }
    model.set("picked", part.dataset.pick);
    model.save_changes();
  };

  el.addEventListener("click", (event) => {
    const part = event.target.closest("[data-pick]");
    if (part) pick(part);
  });
  el.addEventListener("keydown", (event) => {
    const item = event.target.closest("[role=treeitem]");
    if (!item) return;
    const all = steps();
    const at = all.indexOf(item);
    const beside = (other) => (other?.ariaLevel === item.ariaLevel ? other : undefined);
    const next = {
      ArrowRight: () => all.find((other) => `node:${other.dataset.parent}` === item.dataset.pick),
      ArrowLeft: () => step(`node:${item.dataset.parent}`),
      ArrowDown: () => beside(all[at + 1]),
      ArrowUp: () => beside(all[at - 1]),
      Home: () => all[0],
      Enter: () => item,
    }[event.key];
    if (!next) return;
    event.preventDefault();
    event.stopPropagation();
    const target = next();
    if (target) pick(target);
  });
  model.on("change:html", show);
  model.on("change:current", select);
  model.on("change:marks", mark);
  show();
}

export default { render };
