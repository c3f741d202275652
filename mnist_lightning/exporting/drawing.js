
// ---------------------------------------------------------------- from a drawing to 28 x 28: data/photo.py, its part for
// clean drawings, and data/placing.py, step by step with the same names

const BOX = 20, SIDE = 28, STROKE = [2.0, 3.6], FINE = [80, 128];
const INK = Math.fround(0.4); // as NumPy compares float32 with it
const plane = (height, width, data = new Float32Array(height * width)) => ({ height, width, data });
const sum = (values) => values.reduce((a, b) => a + b, 0);

// grey levels of a drawing, dark on light or light on dark -> { status: ok | number | none | blank, parts: 28 x 28 bytes each }
function prepare(grey) {
  const counts = new Uint32Array(256);
  for (const level of grey.data) counts[level | 0]++;
  const paper = counts.indexOf(Math.max(...counts)), away = grey.data.map((level) => Math.abs(level - paper));
  const most = away.reduce((a, b) => Math.max(a, b), 0);
  if (most < 8) return { status: "blank", parts: [] };
  const ink = plane(grey.height, grey.width, away.map((value) => value / most));
  const { shapes, labels } = shapesOf(ink);
  if (!shapes.length) return { status: "blank", parts: [] };
  const groups = grouped(shapes), main = groups.reduce((a, b) => (b.longest > a.longest ? b : a));
  const peers = groups.filter((group) => group.longest >= 0.5 * main.longest).sort((a, b) => a.left - b.left);
  const inRow = peers.every((peer) => overlap(peer.top, peer.bottom, main.top, main.bottom) >= 0.5);
  if (peers.length > 1 ? !inRow || peers.length > 12 : main.width > 2 * main.height) return { status: "none", parts: [] };
  const parts = peers.map((peer) => normalised(ink, labels, peer));
  return { status: peers.length > 1 ? "number" : "ok", parts };
}

function shape(numbers, top, bottom, left, right) {
  const height = bottom - top, width = right - left;
  return { numbers, top, bottom, left, right, height, width, longest: Math.max(height, width) };
}

function shapesOf({ height, width, data }) { // connected pieces, also by their corners
  const labels = new Int32Array(height * width), found = [], stack = [];
  for (let start = 0; start < data.length; start++) {
    if (data[start] <= INK || labels[start]) continue;
    let top = height, bottom = 0, left = width, right = 0;
    const number = found.length + 1;
    labels[start] = number;
    stack.push(start);
    while (stack.length) {
      const at = stack.pop(), y = (at / width) | 0, x = at % width;
      top = Math.min(top, y), bottom = Math.max(bottom, y + 1), left = Math.min(left, x), right = Math.max(right, x + 1);
      for (let v = Math.max(0, y - 1); v <= Math.min(height - 1, y + 1); v++)
        for (let u = Math.max(0, x - 1); u <= Math.min(width - 1, x + 1); u++) {
          const next = v * width + u;
          if (data[next] > INK && !labels[next]) (labels[next] = number), stack.push(next);
        }
    }
    found.push(shape([number], top, bottom, left, right));
  }
  const left = new Set(found), largest = () => [...left].reduce((a, b) => (b.longest > a.longest ? b : a));
  while (left.size && isOutline(largest(), found, labels, height, width)) left.delete(largest());
  const least = Math.max(0.1 * [...left].reduce((most, one) => Math.max(most, one.longest), 0), 3);
  return { shapes: [...left].filter((one) => one.longest >= least), labels };
}

function isOutline(shape, all, labels, height, width) { // only drawn around another; ink along most of each side
  const { top, bottom, left, right } = shape;
  const inside = (one) => top < one.top && one.bottom < bottom && left < one.left && one.right < right;
  if (!all.some((one) => inside(one) && one.longest > 0.25 * Math.min(shape.height, shape.width))) return false;
  const along = (count, deep, at) => { // share of `count` lines with ink in the first 15 % of `deep` pixels
    const wide = 1 + Math.floor(0.15 * deep);
    const has = (i) => Array.from({ length: Math.min(wide, deep) }, (_, j) => at(i, j)).some((n) => labels[n] === shape.numbers[0]);
    return Array.from({ length: count }, (_, i) => i).filter(has).length / count;
  };
  const place = (y, x) => y * width + x, { height: h, width: w } = shape;
  if (w < 0.85 * h) { // a box has corners; else it is a 0 with a dot or a stroke in it
    const deep = 1 + Math.floor(0.1 * w), square = Array.from({ length: deep * deep }, (_, i) => [(i / deep) | 0, i % deep]);
    const ends = [[top, left], [top, right - deep], [bottom - deep, left], [bottom - deep, right - deep]];
    const inked = ([y, x]) => square.some(([v, u]) => labels[place(y + v, x + u)] === shape.numbers[0]);
    if (!ends.every(inked)) return false;
  }
  const sides = [
    [top, () => along(w, h, (i, j) => place(top + j, left + i))],
    [height - bottom, () => along(w, h, (i, j) => place(bottom - 1 - j, left + i))],
    [left, () => along(h, w, (i, j) => place(top + i, left + j))],
    [width - right, () => along(h, w, (i, j) => place(top + i, right - 1 - j))],
  ];
  return sides.every(([room, share]) => !room || share() >= 0.6); // it may run out of the picture
}

function overlap(start, end, otherStart, otherEnd) {
  return (Math.min(end, otherEnd) - Math.max(start, otherStart)) / Math.max(Math.min(end - start, otherEnd - otherStart), 1);
}

function oneDigit(a, b) {
  const [large, small] = a.longest >= b.longest ? [a, b] : [b, a];
  const gapX = Math.max(a.left, b.left) - Math.min(a.right, b.right);
  const gapY = Math.max(a.top, b.top) - Math.min(a.bottom, b.bottom);
  if (gapX <= 0 && overlap(a.left, a.right, b.left, b.right) > 0.3)
    return gapY <= (small.height > 0.4 * large.height ? 0.12 : 0.35) * large.longest;
  if (small.longest < 0.45 * large.longest) return Math.max(gapX, gapY) <= 0.2 * large.longest;
  const [left, right] = a.left <= b.left ? [a, b] : [b, a];
  const lower = Math.min(right.top - left.top, right.bottom - left.bottom) / large.longest;
  if (lower >= 0.15 && gapY <= 0 && right.width < 0.5 * right.height) return gapX <= 0.12 * large.longest;
  return Math.max(gapX, gapY) <= 0.04 * large.longest && small.height < 0.75 * large.height;
}

function grouped(shapes) {
  const groups = [...shapes].sort((a, b) => b.longest - a.longest);
  for (let changed = true; changed; ) {
    changed = false;
    for (let i = 0; i < groups.length; i++)
      for (const b of groups.slice(i + 1)) {
        const a = groups[i];
        if (!oneDigit(a, b)) continue;
        groups.splice(groups.indexOf(b), 1);
        const sides = [Math.min(a.top, b.top), Math.max(a.bottom, b.bottom), Math.min(a.left, b.left), Math.max(a.right, b.right)];
        groups[i] = shape([...a.numbers, ...b.numbers], ...sides);
        changed = true;
      }
  }
  return groups;
}

function normalised(ink, labels, { numbers, top, bottom, left, right }) {
  const own = (y, x) => y >= 0 && x >= 0 && y < ink.height && x < ink.width && numbers.includes(labels[y * ink.width + x]);
  const first = [Math.max(top - 1, 0), Math.max(left - 1, 0)];
  const last = [Math.min(bottom + 1, ink.height), Math.min(right + 1, ink.width)];
  const cut = plane(last[0] - first[0] + 2, last[1] - first[1] + 2); // with a border of paper
  for (let y = first[0]; y < last[0]; y++)
    for (let x = first[1]; x < last[1]; x++) {
      let near = false;
      for (let v = Math.max(y - 1, first[0]); v <= Math.min(y + 1, last[0] - 1); v++)
        for (let u = Math.max(x - 1, first[1]); u <= Math.min(x + 1, last[1] - 1); u++) near ||= own(v, u);
      if (near) cut.data[(y - first[0] + 1) * cut.width + x - first[1] + 1] = Math.min(ink.data[y * ink.width + x], 1);
    }
  return placed(evenStrokes(fine(cut)));
}

function fine(ink) {
  const longest = Math.max(ink.height, ink.width);
  if (longest <= FINE[1]) {
    const times = Math.ceil(FINE[0] / longest);
    return product(bilinear(ink.height, times), ink, bilinear(ink.width, times));
  }
  const step = Math.ceil(longest / FINE[1]);
  const small = plane(Math.ceil(ink.height / step), Math.ceil(ink.width / step));
  for (let y = 0; y < ink.height; y++)
    for (let x = 0; x < ink.width; x++) {
      const at = ((y / step) | 0) * small.width + ((x / step) | 0);
      small.data[at] = Math.max(small.data[at], ink.data[y * ink.width + x]);
    }
  return small;
}

function bilinear(side, times) { // rows of weights, a row for each pixel of the enlarged line
  return Array.from({ length: times * side }, (_, i) => {
    const place = Math.min(Math.max((i + 0.5) / times - 0.5, 0), side - 1);
    return Float32Array.from({ length: side }, (_, j) => Math.max(1 - Math.abs(place - j), 0));
  });
}

function product(rows, { width, data }, columns) { // rows @ data @ columns.T
  const half = rows.map((row) => {
    const line = new Float64Array(width);
    row.forEach((weight, y) => {
      if (weight) for (let x = 0; x < width; x++) line[x] += weight * data[y * width + x];
    });
    return line;
  });
  const result = plane(rows.length, columns.length);
  const some = columns.map((column) => Array.from(column.keys()).filter((x) => column[x]));
  half.forEach((line, y) => {
    columns.forEach((column, x) => {
      let total = 0;
      for (const i of some[x]) total += column[i] * line[i];
      result.data[y * columns.length + x] = total;
    });
  });
  return result;
}

function distances(inside, height, width) { // of each pixel that is inside, to the nearest that is not; exact
  const far = 1e9, squares = Float64Array.from(inside, (is) => (is ? far : 0));
  const line = (start, step, count) => { // the lower envelope of parabolas, Felzenszwalb and Huttenlocher 2012
    const f = Float64Array.from({ length: count }, (_, i) => squares[start + i * step]);
    const v = [0], z = [-Infinity, Infinity];
    for (let q = 1, k = 0; q < count; q++) {
      const meet = () => (f[q] + q * q - f[v[k]] - v[k] * v[k]) / (2 * q - 2 * v[k]);
      let s = meet();
      while (s <= z[k]) k--, (s = meet());
      k++, (v[k] = q), (z[k] = s), (z[k + 1] = Infinity);
    }
    for (let q = 0, k = 0; q < count; q++) {
      while (z[k + 1] < q) k++;
      squares[start + q * step] = (q - v[k]) ** 2 + f[v[k]];
    }
  };
  for (let x = 0; x < width; x++) line(x, width, height);
  for (let y = 0; y < height; y++) line(y * width, 1, width);
  return squares.map(Math.sqrt);
}

const bounds = (filled, count) => { // first and last of `count` lines with something in them
  const lines = Array.from({ length: count }, (_, i) => i).filter(filled);
  return lines[lines.length - 1] - lines[0] + 1;
};

function evenStrokes({ height, width, data }) {
  const border = (Math.max(height, width) / 8) | 0, to = plane(height + 2 * border, width + 2 * border);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) if (data[y * width + x] > INK) to.data[(y + border) * to.width + x + border] = 1;
  const inside = distances(to.data, to.height, to.width);
  const outside = distances(to.data.map((is) => 1 - is), to.height, to.width);
  const all = Array.from(to.data.keys()).filter((i) => to.data[i]);
  const rows = new Set(all.map((i) => (i / to.width) | 0)), columns = new Set(all.map((i) => i % to.width));
  const longest = Math.max(bounds((y) => rows.has(y), to.height), bounds((x) => columns.has(x), to.width));
  const stroke = 4 * (sum(all.map((i) => inside[i])) / all.length - 0.5);
  const wanted = Math.min(Math.max((stroke * BOX) / longest, STROKE[0]), STROKE[1]);
  const most = all.reduce((a, i) => Math.max(a, inside[i]), 0);
  const grown = Math.max((wanted * longest - BOX * stroke) / (2 * (BOX - wanted)), -0.5 * most), edge = longest / BOX;
  const levels = inside.map((value, i) => Math.min(Math.max(0.5 + (grown + value - outside[i]) / edge, 0), 1));
  return plane(to.height, to.width, Float32Array.from(levels));
}

function placed(ink) {
  const { height, width, data } = ink, mass = [new Float64Array(height), new Float64Array(width)];
  const rows = new Set(), columns = new Set();
  data.forEach((value, i) => {
    const y = (i / width) | 0, x = i % width;
    (mass[0][y] += value), (mass[1][x] += value);
    if (value > 0.5) rows.add(y), columns.add(x);
  });
  const step = Math.max(bounds((y) => rows.has(y), height), bounds((x) => columns.has(x), width)) / BOX;
  const total = sum(mass[0]);
  const [down, across] = mass.map((line) => {
    const middle = line.reduce((a, value, i) => a + value * (i + 0.5), 0) / total;
    return Array.from({ length: SIDE }, (_, i) => {
      const start = middle + (i - 14.5) * step;
      return Float32Array.from(line, (_, j) => Math.max(Math.min(start + step, j + 1) - Math.max(start, j), 0) / step);
    });
  });
  return Uint8Array.from(product(down, ink, across).data, (value) => Math.min(Math.max(Math.round(value * 255), 0), 255));
}
