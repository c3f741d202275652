// A network of convolutions and matrix products, from 28 x 28 grey bytes to probabilities. Its weights are float32 less
// their lowest byte. Arrays are Float32Array, channel after channel, row after row.
const network = JSON.parse(document.getElementById("network").textContent);

const weights = (() => {
  const packed = Uint8Array.from(atob(network.weights), (letter) => letter.charCodeAt(0));
  const bytes = new Uint8Array((packed.length / 3) * 4);
  for (let i = 0, j = 0; i < packed.length; i += 3, j += 4) {
    bytes[j + 1] = packed[i];
    bytes[j + 2] = packed[i + 1];
    bytes[j + 3] = packed[i + 2];
  }
  return new Float32Array(bytes.buffer);
})();
const take = (at, count) => weights.subarray(at, at + count);

function erf(x) { // Abramowitz and Stegun 7.1.26: within 1.5e-7
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - tail * Math.exp(-x * x));
}
const ACTIVATIONS = {
  Identity: (x) => x,
  ReLU: (x) => (x > 0 ? x : 0),
  ReLU6: (x) => Math.min(Math.max(x, 0), 6),
  LeakyReLU: (x) => (x > 0 ? x : 0.01 * x),
  ELU: (x) => (x > 0 ? x : Math.expm1(x)),
  SELU: (x) => 1.0507009873554805 * (x > 0 ? x : 1.6732632423543772 * Math.expm1(x)),
  Sigmoid: (x) => 1 / (1 + Math.exp(-x)),
  Tanh: Math.tanh,
  SiLU: (x) => x / (1 + Math.exp(-x)),
  Mish: (x) => x * Math.tanh(Math.log1p(Math.exp(x))),
  GELU: (x) => 0.5 * x * (1 + erf(x * Math.SQRT1_2)),
  Softplus: (x) => (x > 20 ? x : Math.log1p(Math.exp(x))),
  Hardswish: (x) => (x * Math.min(Math.max(x + 3, 0), 6)) / 6,
};

const LAYERS = {
  conv(map, { out, kernel, stride, padding, at }) {
    const input = padding ? LAYERS.pad(map, { by: padding }) : map;
    const { data, channels, side } = input, to = Math.floor((side - kernel) / stride) + 1, area = to * to;
    const result = new Float32Array(out * area), size = channels * kernel * kernel;
    const matrix = take(at, out * size), bias = take(at + out * size, out);
    for (let o = 0; o < out; o++) {
      const start = o * area;
      result.fill(bias[o], start, start + area);
      for (let i = 0; i < size; i++) {
        const weight = matrix[o * size + i], column = i % kernel, row = ((i / kernel) | 0) % kernel;
        const channel = (i / (kernel * kernel)) | 0;
        for (let y = 0; y < to; y++) {
          const from = channel * side * side + (y * stride + row) * side + column, into = start + y * to;
          for (let x = 0; x < to; x++) result[into + x] += weight * data[from + x * stride];
        }
      }
    }
    return { data: result, channels: out, side: to };
  },
  pad({ data, channels, side }, { by }) { // by less than 0: the border goes
    const to = side + 2 * by, result = new Float32Array(channels * to * to);
    const first = Math.max(0, -by), last = Math.min(side, to - by);
    for (let c = 0; c < channels; c++)
      for (let y = first; y < last; y++)
        for (let x = first; x < last; x++) result[(c * to + y + by) * to + x + by] = data[(c * side + y) * side + x];
    return { data: result, channels, side: to };
  },
  pool({ data, channels, side }, { window }) {
    const to = (side / window) | 0, result = new Float32Array(channels * to * to).fill(-Infinity);
    for (let c = 0; c < channels; c++)
      for (let y = 0; y < to * window; y++)
        for (let x = 0; x < to * window; x++) {
          const into = (c * to + ((y / window) | 0)) * to + ((x / window) | 0);
          const value = data[(c * side + y) * side + x];
          if (value > result[into]) result[into] = value;
        }
    return { data: result, channels, side: to };
  },
  scale({ data, channels, side }, { at }) { // batch normalisation, as it is after training
    const factor = take(at, channels), shift = take(at + channels, channels), area = side * side;
    return { data: data.map((x, i) => x * factor[(i / area) | 0] + shift[(i / area) | 0]), channels, side };
  },
  activation: ({ data, channels, side }, { name }) => ({ data: data.map(ACTIVATIONS[name]), channels, side }),
  linear({ data }, { out, at }) {
    const size = data.length, matrix = take(at, out * size), result = Float32Array.from(take(at + out * size, out));
    for (let o = 0; o < out; o++) {
      let sum = 0;
      for (let i = 0; i < size; i++) sum += matrix[o * size + i] * data[i];
      result[o] += sum;
    }
    return { data: result, channels: out, side: 1 };
  },
};

// grey: 784 values from 0, the paper, to 255 -> what the softmax is taken of
function logits(grey) {
  const data = Float32Array.from(grey, (level) => (level / 255 - network.mean) / network.std);
  const last = network.layers.reduce((map, layer) => LAYERS[layer.kind](map, layer), { data, channels: 1, side: 28 });
  return Array.from(last.data, (value) => value / network.temperature);
}

function softmax(values) {
  const most = Math.max(...values), powers = values.map((value) => Math.exp(value - most));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}
