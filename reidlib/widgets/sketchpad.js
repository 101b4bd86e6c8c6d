// A canvas to draw on with mouse, finger or pen. The strokes live in the Python model; this only shows and adds them.

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "reid-pad";
  const canvas = document.createElement("canvas");
  canvas.setAttribute("aria-label", "Sketch pad");
  const bar = document.createElement("div");
  bar.className = "reid-pad-bar";
  root.append(canvas, bar);
  el.append(root);

  const width = model.get("pixels");
  const height = Math.round(width * model.get("ratio"));
  const scale = window.devicePixelRatio || 1;
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  canvas.style.touchAction = "none"; // a finger draws instead of scrolling
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);

  let current = null; // the stroke under the pointer, not yet in the model
  let backdrop = null;
  const tool = { ink: Object.values(model.get("inks"))[0], width: Object.values(model.get("widths"))[0] };

  function drawStroke(stroke) {
    const grey = Math.round(255 * (1 - stroke.ink));
    pen.strokeStyle = `rgb(${grey}, ${grey}, ${grey})`;
    pen.lineWidth = Math.max(1, stroke.width * width);
    pen.beginPath();
    stroke.points.forEach(([x, y], i) => pen[i ? "lineTo" : "moveTo"](x * width, y * height));
    if (stroke.points.length === 1) pen.lineTo(stroke.points[0][0] * width + 0.01, stroke.points[0][1] * height);
    pen.stroke();
  }

  function draw() {
    pen.fillStyle = "white";
    pen.fillRect(0, 0, width, height);
    const strokes = model.get("strokes");
    pen.lineCap = pen.lineJoin = "round";
    if (!strokes.length && !current) {
      if (backdrop) pen.drawImage(backdrop, 0, 0, width, height);
      else outline();
    }
    inOrder(current ? [...strokes, current] : [...strokes]).forEach(drawStroke);
  }

  // As in Python: between two uses of the eraser, the darker after the lighter.
  function inOrder(strokes) {
    const drawn = [];
    let group = [];
    const flush = () => {
      drawn.push(...group.sort((a, b) => a.ink - b.ink));
      group = [];
    };
    for (const stroke of strokes) {
      if (stroke.ink > 0) group.push(stroke);
      else {
        flush();
        drawn.push(stroke);
      }
    }
    flush();
    return drawn;
  }

  // Where a person stands in most pictures, faintly, until the first stroke; it is not a part of the drawing.
  function outline() {
    pen.strokeStyle = "#d9dee6";
    pen.lineWidth = 1.5;
    pen.setLineDash([4, 4]);
    pen.beginPath();
    pen.ellipse(0.5 * width, 0.11 * height, 0.1 * width, 0.06 * height, 0, 0, 2 * Math.PI);
    const body = [[0.38, 0.19], [0.24, 0.24], [0.2, 0.5], [0.3, 0.5], [0.33, 0.95], [0.47, 0.95], [0.5, 0.58]];
    const whole = [...body, ...body.slice(0, -1).reverse().map(([x, y]) => [1 - x, y])];
    whole.forEach(([x, y], i) => pen[i ? "lineTo" : "moveTo"](x * width, y * height));
    pen.closePath();
    pen.stroke();
    pen.setLineDash([]);
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    const inside = (v) => Math.round(Math.min(1, Math.max(0, v)) * 1e4) / 1e4;
    return [inside((event.clientX - box.left) / box.width), inside((event.clientY - box.top) / box.height)];
  }

  function send(strokes) {
    model.set("strokes", strokes);
    model.save_changes();
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button > 0 || current) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    current = { id: event.pointerId, points: [place(event)], width: tool.width, ink: tool.ink };
    draw();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!current || event.pointerId !== current.id) return;
    const moves = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
    current.points.push(...(moves.length ? moves : [event]).map(place));
    draw();
  });
  function finish(event) {
    if (!current || event.pointerId !== current.id) return;
    const { points, width, ink } = current;
    current = null;
    send([...model.get("strokes"), { points, width, ink }]);
  }
  canvas.addEventListener("pointerup", finish);
  canvas.addEventListener("pointercancel", finish);

  function button(text, press) {
    const node = document.createElement("button");
    node.type = "button";
    node.textContent = text;
    node.addEventListener("click", press);
    bar.append(node);
    return node;
  }
  function choices(field, values) {
    const made = Object.entries(values).map(([name, value]) => [button(name, () => choose(value)), value]);
    function choose(value) {
      tool[field] = value;
      made.forEach(([node, own]) => node.setAttribute("aria-pressed", own === value));
    }
    choose(tool[field]);
  }
  choices("ink", model.get("inks"));
  choices("width", model.get("widths"));
  button("Clear", () => {
    backdrop = null;
    if (model.get("strokes").length) send([]);
    else model.send({ event: "clear" });
    draw();
  });

  const onPicture = (message, buffers) => {
    if (message.event !== "backdrop") return;
    if (!buffers.length) {
      backdrop = null;
      draw();
      return;
    }
    const address = URL.createObjectURL(new Blob([buffers[0]], { type: "image/png" }));
    const picture = new Image();
    picture.onload = () => {
      backdrop = picture;
      URL.revokeObjectURL(address);
      draw();
    };
    picture.src = address;
  };
  model.on("change:strokes", draw);
  model.on("msg:custom", onPicture);
  draw();
  return () => {
    model.off("change:strokes", draw);
    model.off("msg:custom", onPicture);
  };
}

export default { render };
