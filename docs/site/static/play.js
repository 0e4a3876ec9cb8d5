// A small network in the browser: the formulas of gpubackprop/passes.py in plain JavaScript, in double.
// No server, no library. `Play.check(numbers)` holds them to the numbers that the library computed.
"use strict";

const Play = (() => {
  const ACTIVATIONS = {
    tanh: { value: Math.tanh, slope: (a, h) => 1 - h * h },
    logistic: { value: (a) => 1 / (1 + Math.exp(-a)), slope: (a, h) => h * (1 - h) },
    relu: { value: (a) => Math.max(a, 0), slope: (a) => (a > 0 ? 1 : 0) },
  };

  // a_l = W_l h_{l-1} + b_l,  h_l = g(a_l);  yhat = softmax(a_L)
  function forward(network, x) {
    const g = ACTIVATIONS[network.activation].value;
    const a = [], h = [x], last = network.W.length - 1;
    network.W.forEach((W, l) => {
      a.push(W.map((row, i) => row.reduce((sum, w, j) => sum + w * h[l][j], 0) + network.b[l][i]));
      if (l < last) h.push(a[l].map(g));
    });
    const m = Math.max(...a[last]);
    const e = a[last].map((v) => Math.exp(v - m));
    const S = e.reduce((sum, v) => sum + v, 0);
    return { a, h, m, S, yhat: e.map((v) => v / S) };
  }

  // delta_L = yhat - e_y;  grad_h_l = W_{l+1}^T delta_{l+1},  delta_l = grad_h_l * g'(a_l)
  function gradients(network, x, y) {
    const { a, h, m, S, yhat } = forward(network, x);
    const slope = ACTIVATIONS[network.activation].slope, last = network.W.length - 1;
    const delta = [], grad_W = [], grad_b = [];
    delta[last] = yhat.map((p, k) => p - (k === y ? 1 : 0));
    for (let l = last; l >= 0; l--) {
      grad_W[l] = delta[l].map((d) => h[l].map((v) => d * v)); // delta_l h_{l-1}^T
      grad_b[l] = delta[l].slice();
      if (l > 0) {
        delta[l - 1] = h[l].map((v, j) => {
          const grad_h = delta[l].reduce((sum, d, i) => sum + network.W[l][i][j] * d, 0);
          return grad_h * slope(a[l - 1][j], v);
        });
      }
    }
    return { a, h: h.slice(1), yhat, loss: Math.log(S) - (a[last][y] - m), delta, grad_W, grad_b };
  }

  // theta <- theta - lr * gradient
  function step(network, x, y, lr) {
    const g = gradients(network, x, y);
    const W = network.W.map((M, l) => M.map((row, i) => row.map((w, j) => w - lr * g.grad_W[l][i][j])));
    const b = network.b.map((v, l) => v.map((w, i) => w - lr * g.grad_b[l][i]));
    return { ...network, W, b };
  }

  const flat = (value) => (Array.isArray(value) ? value.flatMap(flat) : [value]);

  // The largest difference to the library's numbers, each relative to the largest of its kind.
  function check(numbers) {
    let worst = 0, count = 0;
    const compare = (mine, theirs) => {
      const ours = flat(mine), wanted = flat(theirs);
      if (ours.length !== wanted.length) throw new Error("another number of values");
      const scale = Math.max(...wanted.map(Math.abs), 1e-300);
      wanted.forEach((w, k) => { worst = Math.max(worst, Math.abs(w - ours[k]) / scale); });
      if (ours.some(Number.isNaN)) worst = Infinity;
      count += wanted.length;
    };
    for (const item of numbers.cases) {
      const g = gradients(item.network, item.x, item.y);
      for (const name of Object.keys(item.expected)) compare(g[name], item.expected[name]);
      let network = item.network;
      for (let k = 0; k < item.steps; k++) network = step(network, item.x, item.y, item.lr);
      compare([network.W, network.b], [item.after.W, item.after.b]);
    }
    return { worst, count, cases: numbers.cases.length };
  }

  return { ACTIVATIONS, forward, gradients, step, check };
})();

if (typeof module !== "undefined") module.exports = Play;
