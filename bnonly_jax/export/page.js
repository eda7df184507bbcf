// A plain network (plain.py says what its nodes are) and what makes its input, in plain JavaScript.
// An image is {height, width, channels, values}, values [height, width, channels] one after another.
'use strict';

// Names, nodes and shapes of a page, and its weights, float32 one tensor after another, as base64.
function readNetwork(about, base64) {
  const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
  const tensors = {};
  let offset = 0;
  for (const [name, shape] of about.tensors) {
    const count = shape.reduce((product, side) => product * side, 1);
    tensors[name] = {shape, values: new Float32Array(bytes.buffer, offset, count)};
    offset += 4 * count;
  }
  return {nodes: about.nodes, tensors};
}

function logitsOf(network, image) {
  const found = {images: image};
  let last;
  for (const node of network.nodes) {
    const kernel = network.tensors[`${node.name}/kernel`];
    const bias = network.tensors[`${node.name}/bias`];
    const x = found[node.input];
    if (node.op === 'conv') last = convolve(node, x, kernel, bias, found[node.residual]);
    else if (node.op === 'max_pool') last = maxPool(node, x);
    else last = dense(x, kernel, bias);
    found[node.name] = last;
  }
  return last.values;
}

function convolve(node, x, kernel, bias, residual) {
  const [size, , inputs, outputs] = kernel.shape;
  const stride = node.stride, padding = (size - 1) >> 1;
  const after = side => Math.floor((side + 2 * padding - size) / stride) + 1;
  const height = after(x.height), width = after(x.width);
  const y = new Float32Array(height * width * outputs);
  const sums = new Float64Array(outputs);
  for (let row = 0, place = 0; row < height; row++) {
    for (let column = 0; column < width; column++, place += outputs) {
      // A bias that is a map has one vector for each kind of row and of column.
      const kind = node.rows ? node.rows[row] * bias.shape[1] + node.columns[column] : 0;
      for (let o = 0; o < outputs; o++) sums[o] = bias.values[kind * outputs + o];
      for (let i = 0; i < size; i++) {
        const top = row * stride + i - padding;
        if (top < 0 || top >= x.height) continue;
        for (let j = 0; j < size; j++) {
          const left = column * stride + j - padding;
          if (left < 0 || left >= x.width) continue;
          const pixel = (top * x.width + left) * inputs, tap = (i * size + j) * inputs;
          for (let c = 0; c < inputs; c++) {
            const value = x.values[pixel + c];
            if (value === 0) continue;  // about half of all, after a ReLU
            const weights = (tap + c) * outputs;
            for (let o = 0; o < outputs; o++) sums[o] += value * kernel.values[weights + o];
          }
        }
      }
      for (let o = 0; o < outputs; o++) {
        const sum = sums[o] + (residual ? residual.values[place + o] : 0);
        y[place + o] = node.relu ? Math.max(sum, 0) : sum;
      }
    }
  }
  return {height, width, channels: outputs, values: y};
}

function maxPool(node, x) {
  const after = side => Math.floor((side + 2 * node.padding - node.size) / node.stride) + 1;
  const height = after(x.height), width = after(x.width), channels = x.channels;
  const y = new Float32Array(height * width * channels).fill(-Infinity);
  for (let row = 0, place = 0; row < height; row++) {
    for (let column = 0; column < width; column++, place += channels) {
      for (let i = 0; i < node.size; i++) {
        const top = row * node.stride + i - node.padding;
        if (top < 0 || top >= x.height) continue;
        for (let j = 0; j < node.size; j++) {
          const left = column * node.stride + j - node.padding;
          if (left < 0 || left >= x.width) continue;
          const pixel = (top * x.width + left) * channels;
          for (let c = 0; c < channels; c++) {
            y[place + c] = Math.max(y[place + c], x.values[pixel + c]);
          }
        }
      }
    }
  }
  return {height, width, channels, values: y};
}

function dense(x, kernel, bias) {
  const [inputs, outputs] = kernel.shape, positions = x.height * x.width;
  const y = Float64Array.from(bias.values);
  for (let c = 0; c < inputs; c++) {
    let mean = 0;
    for (let p = 0; p < positions; p++) mean += x.values[p * inputs + c] / positions;
    for (let o = 0; o < outputs; o++) y[o] += mean * kernel.values[c * outputs + o];
  }
  return {height: 1, width: 1, channels: outputs, values: y};
}

function softmax(logits) {
  const largest = Math.max(...logits), powers = Array.from(logits, x => Math.exp(x - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map(x => x / sum);
}

// As evaluation does (data/decode.py): a large image shrinks by 2, 4 or 8 as it is decoded, the
// rest of the way is linear interpolation, and the centre is taken. Of uint8, to uint8.
function prepare(image, wanted, isPng) {
  const side = wanted.shorter_side, shrink = Math.min(image.height, image.width) / side;
  const round = x => {  // halves to the even number, as Python does
    const below = Math.floor(x);
    return x - below === 0.5 ? below + below % 2 : Math.round(x);
  };
  const height = Math.max(round(image.height / shrink), side);
  const width = Math.max(round(image.width / shrink), side);
  const by = [8, 4, 2].find(n => Math.floor(shrink / n) >= 1) || 1;
  if (wanted.channels === 1) image = grey(image);
  if (by > 1 && isPng) image = resize(image, Math.floor(image.height / by), Math.floor(image.width / by));
  else if (by > 1) image = average(image, by);
  image = resize(image, height, width);
  return cut(image, (height - wanted.height) >> 1, (width - wanted.width) >> 1, wanted);
}

function cut(image, top, left, {height, width}) {
  const channels = image.channels, values = new Uint8Array(height * width * channels);
  for (let row = 0; row < height; row++) {
    const start = ((top + row) * image.width + left) * channels;
    values.set(image.values.subarray(start, start + width * channels), row * width * channels);
  }
  return {height, width, channels, values};
}

function grey(image) {
  const values = new Uint8Array(image.height * image.width);
  for (let i = 0; i < values.length; i++) {
    const [red, green, blue] = image.values.subarray(3 * i, 3 * i + 3);
    values[i] = Math.round(0.299 * red + 0.587 * green + 0.114 * blue);
  }
  return {...image, channels: 1, values};
}

function average(image, by) {
  const height = Math.ceil(image.height / by), width = Math.ceil(image.width / by);
  const channels = image.channels, values = new Uint8Array(height * width * channels);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const bottom = Math.min((row + 1) * by, image.height);
      const right = Math.min((column + 1) * by, image.width);
      const pixels = (bottom - row * by) * (right - column * by);
      for (let c = 0; c < channels; c++) {
        let sum = 0;
        for (let y = row * by; y < bottom; y++) {
          for (let x = column * by; x < right; x++) {
            sum += image.values[(y * image.width + x) * channels + c];
          }
        }
        values[(row * width + column) * channels + c] = Math.round(sum / pixels);
      }
    }
  }
  return {height, width, channels, values};
}

// For each place on a new side: the two old places around it, and the share of the second.
function between(old, side) {
  return Array.from({length: side}, (_, i) => {
    const at = Math.min(Math.max((i + 0.5) * old / side - 0.5, 0), old - 1);
    const first = Math.floor(at);
    return [first, Math.min(first + 1, old - 1), at - first];
  });
}

function resize(image, height, width) {
  const rows = between(image.height, height), columns = between(image.width, width);
  const channels = image.channels, values = new Uint8Array(height * width * channels);
  let place = 0;
  for (const [top, bottom, down] of rows) {
    for (const [left, right, across] of columns) {
      for (let c = 0; c < channels; c++) {
        const at = (y, x) => image.values[(y * image.width + x) * channels + c];
        const above = at(top, left) * (1 - across) + at(top, right) * across;
        const below = at(bottom, left) * (1 - across) + at(bottom, right) * across;
        values[place++] = Math.round(above * (1 - down) + below * down);
      }
    }
  }
  return {height, width, channels, values};
}

function normalise(image, {mean, std}) {
  const channels = image.channels, values = new Float32Array(image.values.length);
  for (let i = 0; i < values.length; i++) {
    const c = mean.length > 1 ? i % channels : 0, s = std.length > 1 ? i % channels : 0;
    values[i] = (image.values[i] / 255 - mean[c]) / std[s];
  }
  return {...image, values};
}
