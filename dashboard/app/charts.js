// Small charts as SVG.

const SPACE = 'http://www.w3.org/2000/svg';
const WIDTH = 760;

function svg(name, attributes, ...children) {
  const node = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children.flat());
  return node;
}

function frame(label, height, top, ...children) {
  return svg('svg', { class: 'chart', viewBox: `0 0 ${WIDTH} ${height}`, role: 'img', 'aria-label': label },
    [0, 0.5, 1].map((part) => svg('line', { class: 'gridline', x1: 44, x2: WIDTH, y1: 8 + (height - 30) * part, y2: 8 + (height - 30) * part })),
    [0, 0.5, 1].map((part) => svg('text', { class: 'axis', x: 38, y: 12 + (height - 30) * part, 'text-anchor': 'end' }, top(1 - part))), ...children);
}

const axis = (height, left, right) => [svg('text', { class: 'axis', x: 44, y: height - 5 }, left),
  svg('text', { class: 'axis', x: WIDTH, y: height - 5, 'text-anchor': 'end' }, right)];

export function bars(values, label, left, right) {
  const [height, top] = [150, Math.max(2, ...values)];
  const step = (WIDTH - 48) / values.length;
  return frame(label, height, (part) => String(Math.round(top * part * 10) / 10), values.map((value, at) => {
    const tall = (height - 30) * value / top;
    return svg('rect', { class: 'bar-fill', x: 46 + at * step, y: 8 + (height - 30) - tall, width: Math.max(1, step - 2), height: tall, rx: 2 });
  }), axis(height, left, right));
}

// Lines of [x, y] points that share their axes.
export function curves(series, label, left, right) {
  const height = 260;
  const points = series.flat();
  const [xs, ys] = [points.map(([x]) => x), points.map(([, y]) => y)];
  const [low, high] = [ys.reduce((a, b) => Math.min(a, b)), ys.reduce((a, b) => Math.max(a, b))];
  const [first, last] = [xs.reduce((a, b) => Math.min(a, b)), xs.reduce((a, b) => Math.max(a, b))];
  const x = (value) => 46 + (WIDTH - 50) * (value - first) / (last - first || 1);
  const y = (value) => 8 + (height - 30) * (1 - (value - low) / (high - low || 1));
  return frame(label, height, (part) => (low + (high - low) * part).toPrecision(3), series.map((line) => svg('path', {
    class: 'line', d: line.map(([px, py], at) => `${at ? 'L' : 'M'}${x(px).toFixed(1)} ${y(py).toFixed(1)}`).join('') })), axis(height, left, right));
}
