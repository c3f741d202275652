
// ---------------------------------------------------------------- the page

const element = (id) => document.getElementById(id);
const canvas = element("canvas"), pen = canvas.getContext("2d", { willReadFrequently: true });
const WIDTH = 0.07; // of a stroke, as part of the canvas' side
let strokes = [], stroke = null, cursor = { x: 0.5, y: 0.5 };

function redraw() {
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  Object.assign(pen, { strokeStyle: "#000", lineWidth: WIDTH * canvas.width, lineCap: "round", lineJoin: "round" });
  for (const points of strokes) {
    pen.beginPath();
    points.forEach(({ x, y }) => pen.lineTo(x * canvas.width, y * canvas.height));
    if (points.length === 1) pen.lineTo(points[0].x * canvas.width + 0.01, points[0].y * canvas.height);
    pen.stroke();
  }
  element("undo").disabled = element("clear").disabled = !strokes.length;
}

function greyOf(context) {
  const { width, height, data } = context.getImageData(0, 0, context.canvas.width, context.canvas.height);
  return plane(height, width, Float32Array.from({ length: width * height }, (_, i) => data[4 * i]));
}

// { status, names, probabilities of the last part } of what is drawn
function read(grey) {
  const { status, parts } = prepare(grey);
  const rows = parts.map((part) => logits(part)), shares = rows.map(softmax);
  const names = shares.map((row) => network.names[row.indexOf(Math.max(...row))]);
  const energy = Math.min(...rows.map((row) => Math.max(...row) + Math.log(sum(softmax(row).map((_, i) => Math.exp(row[i] - Math.max(...row)))))));
  const least = Math.min(...shares.map((row) => Math.max(...row)));
  const doubtful = least < (network.least_probability ?? 0) || energy < (network.least_energy ?? -Infinity);
  return { status: status === "ok" && doubtful ? "unsure" : status, names, parts, probabilities: shares[shares.length - 1] };
}

function show({ status, names, parts, probabilities }) {
  const words = {
    blank: "Nothing drawn yet.", none: "No digit to be found.", number: `The number ${names.join("")}.`,
    unsure: `Unsure; perhaps ${names[0]}.`, ok: probabilities && `${names[0]}, ${(100 * Math.max(...probabilities)).toFixed(1)} % sure.`,
  };
  element("digit").textContent = { ok: names[0], number: names.join(""), unsure: "?" }[status] ?? "–";
  if (element("words").textContent !== words[status]) element("words").textContent = words[status];
  const seen = element("seen").getContext("2d"), picture = seen.createImageData(28, 28);
  const grey = parts.length ? parts[parts.length - 1] : new Uint8Array(784);
  grey.forEach((level, i) => picture.data.set([level, level, level, 255], 4 * i));
  seen.putImageData(picture, 0, 0);
  network.names.forEach((_, i) => {
    const share = probabilities ? probabilities[i] : 0, row = element("rows").rows[i];
    row.querySelector(".bar").style.width = `${100 * share}%`;
    row.cells[2].textContent = probabilities ? `${(100 * share).toFixed(1)} %` : "";
  });
}

let waiting = false;
function update() { // at most once a frame
  redraw();
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    show(read(greyOf(pen)));
  });
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button > 0 || stroke) return;
  event.preventDefault();
  canvas.focus({ preventScroll: true });
  canvas.setPointerCapture(event.pointerId);
  stroke = { id: event.pointerId, points: [place(event)] };
  strokes.push(stroke.points);
  update();
});
canvas.addEventListener("pointermove", (event) => {
  if (stroke?.id !== event.pointerId) return;
  stroke.points.push(...(event.getCoalescedEvents?.() ?? [event]).concat(event).map(place));
  update();
});
for (const name of ["pointerup", "pointercancel"])
  canvas.addEventListener(name, (event) => {
    if (stroke?.id === event.pointerId) stroke = null;
  });

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
canvas.addEventListener("keydown", (event) => {
  if (event.key === " ") {
    stroke = stroke ? null : { id: "keys", points: [{ ...cursor }] };
    if (stroke) strokes.push(stroke.points);
  } else if (event.key in MOVES) {
    const [x, y] = MOVES[event.key].map((step) => step * 0.04);
    cursor = { x: Math.min(Math.max(cursor.x + x, 0), 1), y: Math.min(Math.max(cursor.y + y, 0), 1) };
    stroke?.points.push({ ...cursor });
  } else return;
  event.preventDefault();
  update();
  pen.fillStyle = stroke ? "#0969da" : "#8c959f"; // where the pen is, over the drawing; the next one is without it
  requestAnimationFrame(() => pen.fillRect(cursor.x * canvas.width - 6, cursor.y * canvas.height - 6, 12, 12));
});

element("undo").addEventListener("click", () => (strokes.pop(), (stroke = null), update()));
element("clear").addEventListener("click", () => ((strokes = []), (stroke = null), update()));
document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === "z" && strokes.length) element("undo").click();
});

element("origin").textContent = `Read in this page, without a server, by ${network.origin}.`;
network.names.forEach((name) => {
  const row = element("rows").insertRow(), head = document.createElement("th");
  head.scope = "row";
  head.textContent = name;
  row.append(head);
  const track = row.insertCell().appendChild(document.createElement("div"));
  track.className = "track";
  track.appendChild(document.createElement("div")).className = "bar";
  row.insertCell();
});
update();
