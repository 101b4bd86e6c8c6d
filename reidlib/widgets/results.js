// Draws the lists that Python sets, and sends back what was pressed. All words are set as text, never as markup.

function node(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function render({ model, el }) {
  const root = node("div", "reid-results");
  const [chips, tray, note, grid] = ["chips", "tray", "note", "grid"].map((name) => node("div", `reid-${name}`));
  const more = node("button", "reid-more", "Show more");
  const large = node("dialog", "reid-large");
  root.append(chips, tray, note, grid, more, large);
  el.append(root);

  const send = (event, at = 0) => model.send({ event, at });
  more.addEventListener("click", () => send("more"));

  function icon(name) {
    return node("i", `fa fa-${name}`);
  }

  function button(text, label, press, pressed = false) {
    const made = node("button", "");
    made.append(text);
    made.type = "button";
    made.title = label;
    made.setAttribute("aria-label", label);
    if (pressed) made.setAttribute("aria-pressed", "true");
    made.addEventListener("click", press);
    return made;
  }

  function marks(entry, after = () => {}) {
    const bar = node("div", "reid-marks");
    const press = (event) => () => {
      send(event, entry.row);
      after();
    };
    bar.append(
      button(icon("thumbs-up"), "More like this one", press("like"), entry.mark === "like"),
      button(icon("thumbs-down"), "Not this one", press("dislike"), entry.mark === "dislike"),
      button(icon("search"), "Search with this one", press("show")),
    );
    return bar;
  }

  function picture(entry) {
    const image = node("img", "");
    image.src = entry.picture;
    image.alt = image.title = entry.name;
    return image;
  }

  function card(entry) {
    const made = node("figure", `reid-card reid-${entry.mark || "unmarked"}`);
    const open = button("", `Enlarge ${entry.name}`, () => send("open", entry.row));
    open.className = "reid-picture";
    open.append(picture(entry));
    const label = node("figcaption", "reid-label");
    label.append(node("b", "", entry.rank), node("span", "", entry.score));
    made.append(open, label, marks(entry));
    return made;
  }

  function draw() {
    chips.replaceChildren(
      ...model.get("chips").map((chip) => {
        const made = node("span", chip.sure ? "reid-chip" : "reid-chip reid-unsure");
        const text = chip.sure ? chip.text : `${chip.text}? The candidates look otherwise.`;
        made.append(node("span", "", text), button("×", `Take away: ${chip.text}`, () => send("forget", chip.position)));
        return made;
      }),
    );
    tray.replaceChildren(
      ...model.get("tray").map((entry) => {
        const made = button("", `Take the mark from ${entry.name}`, () => send(entry.mark, entry.row));
        made.className = `reid-kept reid-${entry.mark}`;
        made.append(picture(entry), icon(entry.mark === "like" ? "thumbs-up" : "thumbs-down"));
        return made;
      }),
    );
    note.textContent = model.get("note");
    grid.replaceChildren(...model.get("cards").map(card));
    more.hidden = !model.get("more");
  }

  const onMessage = (message, buffers) => {
    if (message.event !== "large") return;
    const entry = model.get("cards").find((each) => each.row === message.row);
    if (!entry) return;
    const image = picture(entry);
    const address = URL.createObjectURL(new Blob([buffers[0]], { type: "image/jpeg" }));
    image.onload = () => URL.revokeObjectURL(address);
    image.src = address;
    const close = button("Close", "Close", () => large.close());
    large.replaceChildren(image, node("p", "", entry.name), marks(entry, () => large.close()), close);
    large.showModal();
  };
  large.addEventListener("click", (event) => event.target === large && large.close());
  for (const name of ["chips", "tray", "cards", "note", "more"]) model.on(`change:${name}`, draw);
  model.on("msg:custom", onMessage);
  draw();
  return () => {
    for (const name of ["chips", "tray", "cards", "note", "more"]) model.off(`change:${name}`, draw);
    model.off("msg:custom", onMessage);
  };
}

export default { render };
