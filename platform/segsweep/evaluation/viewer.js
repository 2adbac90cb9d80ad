// The slice viewer. Volumes are (z, y, x): z towards the head, y towards the back, x towards the patient's left.
// The patient's right is shown on the left, the front at the top (axial) or on the left (sagittal), the head at the top.

// By the axis that a plane cuts: the axes of its columns and rows, and whether rows run from the last to the first.
const SIDES = [
  { across: 2, down: 1, turned: false },
  { across: 2, down: 0, turned: true },
  { across: 1, down: 0, turned: true },
];

function startViewer(root) {
  const { cases, planes, windows, levels, colours } = JSON.parse(root.querySelector(".about").textContent);
  const fields = root.querySelector("form").elements, under = root.querySelector(".under"), note = root.querySelector(".note");
  const panels = [...root.querySelectorAll(".plane")].map((element, i) => ({
    ...planes[i], ...SIDES[planes[i].axis], canvas: element.querySelector("canvas"), slider: element.querySelector("input"), words: element.querySelector("output"),
  }));
  const loaded = new Map();
  let shown = null, turns = 0, at = [0, 0, 0], grey = null, wheel = 0;

  async function unpack(index) {
    const text = atob(root.querySelectorAll(".volume")[index].textContent);
    const packed = Uint8Array.from(text, letter => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const all = new Uint8Array(await new Response(stream).arrayBuffer());
    const about = cases[index], [z, y, x] = about.shape, size = z * y * x;
    const part = i => all.subarray(i * size, (i + 1) * size);
    return { ...about, strides: [y * x, x, 1], image: part(0), maps: { reference: part(1), prediction: part(2) } };
  }

  async function show(index, structure) {
    if (!window.DecompressionStream) { under.textContent = "This browser is too old for the viewer; any of 2023 or later will do."; return; }
    under.textContent = "loading …";
    const turn = ++turns;
    if (!loaded.has(index)) loaded.set(index, unpack(index));
    const found = await loaded.get(index);
    if (turn !== turns) return;  // something else was asked for meanwhile
    shown = found;
    fields.case.value = index;
    fields.window.disabled = !shown.hu;
    const names = [...new Set([...shown.reference, ...shown.prediction].flat())].sort();
    fields.structure.replaceChildren(new Option("all", ""), ...names.map(name => new Option(name, name)));
    fields.structure.value = names.includes(structure) ? structure : "";
    note.textContent = shown.note;
    panels.forEach(panel => { panel.slider.max = shown.shape[panel.axis] - 1; });
    paint();
    go(middle());
    under.textContent = "Point at a picture to read it.";
  }

  // Which values of a map belong to what is chosen, as a table by value.
  function members(role) {
    const name = fields.structure.value;
    return Uint8Array.from(shown[role], (names, value) => name ? names.includes(name) : names.length ? value : 0);
  }

  // Whether both maps have what is chosen at a voxel, of all structures the same ones.
  const same = i => fields.structure.value !== "" || String(shown.reference[shown.maps.reference[i]]) === String(shown.prediction[shown.maps.prediction[i]]);

  // The voxel at the middle of what is chosen; of the whole volume where there is nothing.
  function middle() {
    for (const role of ["reference", "prediction"]) {
      const map = shown.maps[role], table = members(role), [, y, x] = shown.shape, sum = [0, 0, 0];
      let count = 0;
      for (let i = 0; i < map.length; i++) if (table[map[i]]) {
        count++; sum[0] += Math.floor(i / (y * x)); sum[1] += Math.floor(i / x) % y; sum[2] += i % x;
      }
      if (count) return sum.map(value => Math.round(value / count));
    }
    return shown.shape.map(size => size >> 1);
  }

  function paint() {
    const [centre, width] = windows[fields.window.value];
    grey = Uint8ClampedArray.from(levels, hu => 255 * (hu - centre + width / 2) / width);
  }

  function go(place) {
    at = place.map((value, axis) => Math.min(shown.shape[axis] - 1, Math.max(0, value)));
    panels.forEach(draw);
  }

  const step = (panel, slices) => go(at.map((value, axis) => axis === panel.axis ? value + slices : value));

  // Where the picture lies within its canvas: all three have one scale, so that mm are mm.
  function frame(panel) {
    const mm = shown.shape.map((size, axis) => size * shown.spacing[axis]), side = panel.canvas.width;
    const width = side * mm[panel.across] / Math.max(...mm), height = side * mm[panel.down] / Math.max(...mm);
    return { left: (side - width) / 2, top: (side - height) / 2, width, height, columns: shown.shape[panel.across], rows: shown.shape[panel.down] };
  }

  const offset = (panel, row, rows) => at[panel.axis] * shown.strides[panel.axis] + (panel.turned ? rows - 1 - row : row) * shown.strides[panel.down];

  function draw(panel) {
    const canvas = panel.canvas, side = Math.round(canvas.clientWidth * devicePixelRatio);
    if (canvas.width !== side) canvas.width = canvas.height = side;
    const pen = canvas.getContext("2d"), box = frame(panel), { rows, columns } = box, jump = shown.strides[panel.across];
    const roles = ["reference", "prediction"].filter(role => fields[role].checked);
    const tables = roles.map(members), share = fields.fill.value / 100, picture = new ImageData(columns, rows);
    for (let row = 0, p = 0; row < rows; row++) {
      for (let column = 0, i = offset(panel, row, rows); column < columns; column++, i += jump, p += 4) {
        const value = shown.hu ? grey[shown.image[i]] : 0;
        let colour = null;
        if (share) {
          const inside = roles.filter((role, k) => tables[k][shown.maps[role][i]]);
          if (inside.length) colour = colours[inside.length < 2 ? inside[0] : same(i) ? "both" : "unlike"];
        }
        for (let k = 0; k < 3; k++) picture.data[p + k] = colour ? value + share * (colour[k] - value) : value;
        picture.data[p + 3] = 255;
      }
    }
    const plain = new OffscreenCanvas(columns, rows);
    plain.getContext("2d").putImageData(picture, 0, 0);
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, side, side);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(plain, box.left, box.top, box.width, box.height);
    roles.forEach((role, k) => outline(pen, panel, box, shown.maps[role], tables[k], role));
    cross(pen, panel, box);
    letters(pen, panel, side);
    panel.slider.value = at[panel.axis];
    panel.words.value = `${panel.name} ${at[panel.axis] + 1} / ${shown.shape[panel.axis]}`;
  }

  // Lines along voxels' edges, wherever two neighbours differ; straight runs are one line, so that dashes show.
  function outline(pen, panel, box, map, table, role) {
    const { rows, columns } = box, wide = box.width / columns, high = box.height / rows, jump = shown.strides[panel.across];
    const key = (row, column) => row < 0 || column < 0 || row >= rows || column >= columns ? 0 : table[map[offset(panel, row, rows) + column * jump]];
    pen.beginPath();
    for (const upright of [false, true]) {
      const lines = upright ? columns : rows, length = upright ? rows : columns;
      for (let line = 0; line <= lines; line++) {
        for (let i = 0, begin = -1; i <= length; i++) {
          const edge = i < length && (upright ? key(i, line - 1) !== key(i, line) : key(line - 1, i) !== key(line, i));
          if (edge && begin < 0) begin = i;
          if (edge || begin < 0) continue;
          const ends = upright ? [line, begin, line, i] : [begin, line, i, line];
          pen.moveTo(box.left + ends[0] * wide, box.top + ends[1] * high);
          pen.lineTo(box.left + ends[2] * wide, box.top + ends[3] * high);
          begin = -1;
        }
      }
    }
    pen.strokeStyle = `rgb(${colours[role]})`;
    pen.lineWidth = 2 * devicePixelRatio;
    pen.setLineDash(role === "prediction" ? [6 * devicePixelRatio, 4 * devicePixelRatio] : []);
    pen.stroke();
    pen.setLineDash([]);
  }

  function cross(pen, panel, box) {
    const row = panel.turned ? box.rows - 1 - at[panel.down] : at[panel.down];
    const x = box.left + (at[panel.across] + 0.5) * box.width / box.columns, y = box.top + (row + 0.5) * box.height / box.rows;
    pen.strokeStyle = "rgba(255, 255, 255, .4)";
    pen.lineWidth = devicePixelRatio;
    pen.beginPath();
    pen.moveTo(x, box.top); pen.lineTo(x, box.top + box.height);
    pen.moveTo(box.left, y); pen.lineTo(box.left + box.width, y);
    pen.stroke();
  }

  function letters(pen, panel, side) {
    const rim = 11 * devicePixelRatio, places = [[rim, side / 2], [side - rim, side / 2], [side / 2, rim], [side / 2, side - rim]];
    pen.font = `bold ${14 * devicePixelRatio}px system-ui, sans-serif`;
    pen.textAlign = "center"; pen.textBaseline = "middle"; pen.lineWidth = 4 * devicePixelRatio; pen.lineJoin = "round";
    panel.marks.forEach((mark, i) => {
      pen.strokeStyle = "#000"; pen.strokeText(mark, ...places[i]);
      pen.fillStyle = "#fff"; pen.fillText(mark, ...places[i]);
    });
  }

  // The voxel under a pointer, or null beside the picture.
  function voxel(panel, event) {
    const box = frame(panel), rect = panel.canvas.getBoundingClientRect(), scale = panel.canvas.width / rect.width;
    const column = Math.floor(((event.clientX - rect.left) * scale - box.left) / box.width * box.columns);
    const row = Math.floor(((event.clientY - rect.top) * scale - box.top) / box.height * box.rows);
    if (column < 0 || row < 0 || column >= box.columns || row >= box.rows) return null;
    const place = [...at];
    place[panel.across] = column;
    place[panel.down] = panel.turned ? box.rows - 1 - row : row;
    return place;
  }

  function read(place) {
    const i = place.reduce((sum, value, axis) => sum + value * shown.strides[axis], 0);
    const names = role => shown[role][shown.maps[role][i]].join(", ") || "-";
    const hu = shown.hu ? `${Math.round(levels[shown.image[i]])} HU; ` : "";
    under.textContent = `${hu}reference: ${names("reference")}; prediction: ${names("prediction")}`;
  }

  for (const panel of panels) {
    panel.canvas.addEventListener("pointermove", event => {
      const place = shown && voxel(panel, event);
      if (!place) return;
      read(place);
      if (event.buttons) go(place);
    });
    panel.canvas.addEventListener("pointerdown", event => {
      const place = shown && voxel(panel, event);
      if (place) { go(place); read(place); }
    });
    // Only where the canvas was clicked at or tabbed to: a page that scrolls must not stop at a picture.
    panel.canvas.addEventListener("wheel", event => {
      if (!shown || document.activeElement !== panel.canvas) return;
      event.preventDefault();
      wheel += event.deltaMode ? 50 * Math.sign(event.deltaY) : event.deltaY;
      if (Math.abs(wheel) >= 50) { step(panel, -Math.sign(wheel)); wheel = 0; }
    }, { passive: false });
    panel.canvas.addEventListener("keydown", event => {
      const slices = { ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10, Home: -1e9, End: 1e9 }[event.key];
      if (!shown || !slices) return;
      event.preventDefault();
      step(panel, slices);
    });
    panel.slider.addEventListener("input", () => { if (shown) step(panel, panel.slider.value - at[panel.axis]); });
  }
  root.querySelector("form").addEventListener("input", event => {
    if (event.target.name === "case") show(Number(fields.case.value), cases[fields.case.value].structure);
    else if (!shown) return;
    else if (event.target.name === "structure") go(fields.structure.value ? middle() : at);
    else { paint(); panels.forEach(draw); }
  });
  for (const button of document.querySelectorAll("button.open")) {
    button.addEventListener("click", async () => {
      root.closest("section").scrollIntoView();
      await show(cases.findIndex(one => one.case === button.dataset.case), button.dataset.structure);
      panels[0].canvas.focus({ preventScroll: true });
    });
  }
  new ResizeObserver(() => { if (shown) panels.forEach(draw); }).observe(root);
  // A page opens quicker when what is far below is unpacked only once it comes near.
  const near = new IntersectionObserver(seen => {
    if (!seen.some(one => one.isIntersecting)) return;
    near.disconnect();
    if (!turns) show(0, cases[0].structure);
  }, { rootMargin: "200px" });
  near.observe(root);
}

document.querySelectorAll(".viewer").forEach(startViewer);
