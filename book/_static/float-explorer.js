// <qlab-float-explorer format="float16" value="0.1">: type a number, click its bits, see how a format stores it.
// Arithmetic is exact, in fractions of BigInts: 0.1 is one tenth. Rounding and overflow are those of qlab.encode.
(() => {
"use strict";

/* ---- Formats: exponent bits, fraction bits, bias, infinities, NaNs, subnormals, signed. A test compares them with
   qlab.FORMATS. Without subnormals only formats without fraction bits are supported (float8_e8m0fnu). ---- */
const IEEE = [true, "ieee", true, true], FN = [false, "all_ones", true, true];
const FNUZ = [false, "negative_zero", true, true], FINITE = [false, "none", true, true];
const FORMATS = {
  float64: [11, 52, 1023, ...IEEE],
  float32: [8, 23, 127, ...IEEE],
  tfloat32: [8, 10, 127, ...IEEE],
  bfloat16: [8, 7, 127, ...IEEE],
  float16: [5, 10, 15, ...IEEE],
  float8_e5m2: [5, 2, 15, ...IEEE],
  float8_e5m2fnuz: [5, 2, 16, ...FNUZ],
  float8_e4m3: [4, 3, 7, ...IEEE],
  float8_e4m3fn: [4, 3, 7, ...FN],
  float8_e4m3fnuz: [4, 3, 8, ...FNUZ],
  float8_e4m3b11fnuz: [4, 3, 11, ...FNUZ],
  float8_e3m4: [3, 4, 3, ...IEEE],
  float8_e8m0fnu: [8, 0, 127, false, "all_ones", false, false],
  float6_e3m2fn: [3, 2, 3, ...FINITE],
  float6_e2m3fn: [2, 3, 1, ...FINITE],
  float4_e2m1fn: [2, 1, 1, ...FINITE],
};
const ROUNDINGS = ["nearest_even", "nearest_away", "toward_zero", "up", "down", "to_odd"];

/** What follows from a format's parameters. Codes are BigInts; one that the format lacks is undefined. */
function getFormat(name) {
  const [E, M, bias, infinities, nans, subnormals, signed] = FORMATS[name];
  const tails = (1n << BigInt(M)) - 1n, magnitudes = (1n << BigInt(E + M)) - 1n, sign = signed ? magnitudes + 1n : 0n;
  const nan = { ieee: magnitudes ^ (tails >> 1n), all_ones: magnitudes, negative_zero: sign }[nans];
  const largest = magnitudes - ({ ieee: tails, all_ones: 1n }[nans] ?? 0n) - BigInt(infinities);
  return {
    name, E, M, bias, subnormals, tails, magnitudes, sign, nan, largest, bits: signed + E + M,
    infinity: infinities ? largest + 1n : undefined,
    emin: subnormals ? 1 - bias : -bias,
    minusZero: signed && nans !== "negative_zero",
  };
}

/* ---- Numbers: { negative, n, d } is the fraction n/d with a sign of its own (there is a minus zero);
   { kind: "infinity", negative } and { kind: "nan" } have no d. ---- */
const times2 = (n, power) => (power > 0 ? n << BigInt(power) : n);
const binary = (n, power, negative) => ({ negative, n: times2(n, power), d: times2(1n, -power) });
const signed = ({ negative, n }) => (negative ? -n : n);

function minus(a, b) {
  const n = signed(a) * b.d - signed(b) * a.d;
  return { negative: n < 0n, n: n < 0n ? -n : n, d: a.d * b.d };
}

/** Floor of the binary logarithm of n/d. */
function log2(n, d) {
  if (!n) return -Infinity;
  const guess = n.toString(2).length - d.toString(2).length;
  return times2(n, -guess) < times2(d, guess) ? guess - 1 : guess;
}

/** A fraction in decimal, cut to some significant digits; an ellipsis says that more would follow. */
function decimal({ negative, n, d }, digits) {
  const sign = negative ? "-" : "";
  if (!n) return `${sign}0`;
  let text = "", exact, exponent = Math.floor(log2(n, d) * Math.log10(2));
  while (text.length !== digits) { // the exponent's first guess may be one off
    const shift = digits - 1 - exponent, power = 10n ** BigInt(Math.abs(shift));
    const [a, b] = shift < 0 ? [n, d * power] : [n * power, d];
    text = (a / b).toString();
    exact = a % b === 0n;
    exponent += text.length - digits;
  }
  if (exact) text = text.replace(/0+$/, "");
  const scientific = exponent < -10 || exponent > 22, point = scientific ? 1 : Math.max(exponent + 1, 1);
  if (!scientific) text = ("0".repeat(Math.max(-exponent, 0)) + text).padEnd(point, "0");
  const rest = text.slice(point) + (exact ? "" : "…");
  return sign + text.slice(0, point) + (rest && `.${rest}`) + (scientific ? `e${exponent}` : "");
}

/** A typed number; a bit pattern brings its code along; { error } names a message. */
function parse(typed, format) {
  const text = typed.normalize("NFKC").trim().replace(/[٠-٩۰-۹]/g, (c) => c.charCodeAt(0) & 15).replace("٫", ".").replace(/−/g, "-");
  if (/^0x[0-9a-f]+$/i.test(text)) {
    return BigInt(text) >> BigInt(format.bits) ? { error: "wide" } : decode(BigInt(text), format);
  }
  const special = /^([+-]?)(?:inf(?:inity)?|∞|(nan))$/i.exec(text);
  if (special) return { kind: special[2] ? "nan" : "infinity", negative: special[1] === "-" };
  const found = /^([+-]?)(?=\.?\d)(\d*)\.?(\d*)(?:e([+-]?\d+))?$/i.exec(text) ?? /^([+-]?)(\d+)()()\/(0*[1-9]\d*)$/.exec(text);
  if (!found) return { error: "bad" };
  const [, sign, whole, decimals, power, divisor = "1"] = found, exponent = Number(power || 0) - decimals.length;
  if (text.length > 2000 || Math.abs(exponent) > 9999) return { error: "long" }; // to compute
  const ten = 10n ** BigInt(Math.abs(exponent)), n = BigInt(whole + decimals), d = BigInt(divisor);
  return { negative: sign === "-", ...(exponent > 0 ? { n: n * ten, d } : { n, d: d * ten }) };
}

/* ---- Codes ---- */

/** All about a code. Its name is the shortest decimal that float64 reads back. */
function decode(code, format) {
  const magnitude = code & format.magnitudes, negative = (code & format.sign) > 0n, sign = negative ? "-" : "";
  const field = Number(magnitude >> BigInt(format.M)), tail = magnitude & format.tails;
  const normal = field > 0 || !format.subnormals, significand = normal ? tail + format.tails + 1n : tail;
  const exponent = Math.max(field - format.bias, format.emin) - format.M;
  const known = { code, negative, field, tail, normal, significand, exponent };
  if (magnitude === format.infinity) return { ...known, kind: "infinity", name: `${sign}inf` };
  if (magnitude > format.largest || code === format.nan) return { ...known, kind: "nan", name: "nan" };
  const kind = normal ? "normal" : tail ? "subnormal" : "zero";
  return { ...known, kind, name: sign + Number(significand) * 2 ** exponent, ...binary(significand, exponent, negative) };
}

/** The value one step below (-1) or above (1) a code, if there is one. */
function neighbour(code, direction, format) {
  const magnitude = code & format.magnitudes, place = (code & format.sign ? -magnitude : magnitude) + BigInt(direction);
  const next = place < 0n ? -place : place;
  if (next > (format.infinity ?? format.largest) || (place < 0n && !format.sign)) return undefined;
  return decode(place < 0n ? next | format.sign : next, format);
}

/** The code of a magnitude (the sign bit clear) with a sign, as far as the format has one. */
const withSign = (code, negative, format) => (negative && (code || format.minusZero) ? code | format.sign : code);

/* ---- Rounding ---- */

/** Cut a magnitude to the format's bits: the code below it, and rest/whole, the share of a step that is cut off. */
function cut({ n, d }, format) {
  const exponent = Math.max(log2(n, d), format.emin), step = exponent - format.M;
  const scaled = times2(n, -step), whole = times2(d, step), kept = scaled / whole;
  const code = kept + (BigInt(exponent - format.emin) << BigInt(format.M)) - (format.subnormals ? 0n : format.tails + 1n);
  if (code < 0n) return { code: 0n, rest: 0n, step, under: true }; // no zero: the smallest value has to do
  return { code, kept, rest: scaled % whole, whole, step };
}

function goesUp({ code, rest, whole }, negative, rounding) {
  if (!rest) return false;
  const odd = (code & 1n) > 0n, twice = rest * 2n;
  if (rounding === "nearest_even") return twice > whole || (twice === whole && odd);
  if (rounding === "nearest_away") return twice >= whole;
  return rounding === "to_odd" ? !odd : rounding === (negative ? "down" : "up");
}

/** IEEE 754, section 7.4: infinity (or NaN in its place) where the direction leads there, else the largest value. */
function overflow(x, rounding, format) {
  const due = !x.d || rounding.startsWith("nearest") || rounding === (x.negative ? "down" : "up");
  return (due ? format.infinity ?? format.nan : undefined) ?? format.largest;
}

/** The code of a number; undefined for a NaN where the format has none. */
function round(x, format, rounding = "nearest_even") {
  if (x.code !== undefined) return x.code;
  if (x.kind === "nan" || (!format.sign && x.negative && x.n !== 0n)) return format.nan;
  const parts = x.d ? cut(x, format) : { code: format.largest + 1n };
  let code = parts.code + BigInt(goesUp(parts, x.negative, rounding));
  if (code > format.largest) code = overflow(x, rounding, format);
  return code === format.nan ? code : withSign(code, x.negative, format);
}

/** The values on either side of x, or of the value that it is exactly; where x lies between them, and what that means. */
function around(x, stored, format) {
  const sides = (code) => ({ below: neighbour(code, -1, format), above: neighbour(code, 1, format) });
  if (!x.d) return stored.kind === "nan" ? {} : sides(stored.code);
  if (!format.sign && x.negative && x.n) return { verdict: "negative" };
  const { code, kept, rest, whole, step, under } = cut(x, format);
  if (under) return { above: decode(0n, format), step, verdict: "under" };
  const over = code > format.largest, inner = withSign(over ? format.largest : code, x.negative, format);
  const found = { ...sides(inner), step, verdict: "exact" };
  if (!rest && !over) return found;
  found[x.negative ? "above" : "below"] = decode(inner, format);
  if (over) return { ...found, verdict: "over" };
  // From the largest value on numbers are rounded as if the exponents went on, so that there is a midpoint too.
  const share = Number((rest * 100000n) / whole) / 100000, twice = rest * 2n;
  const nearer = twice > whole === x.negative ? "to_below" : "to_above";
  return {
    ...found, share: x.negative ? 1 - share : share, middle: binary(kept * 2n + 1n, step - 1, x.negative),
    verdict: code === format.largest ? "over" : twice === whole ? "tie" : nearer,
  };
}

/** What is shown of a text (or of a code) in a format; { error } where it is no number of the format. */
function explain(text, format, given) {
  const x = given === undefined ? parse(text, format) : decode(given, format);
  const code = x.error ? undefined : round(x, format);
  if (code === undefined) return { error: x.error ?? "no_nan" };
  const stored = decode(code, format);
  return { x, stored, off: x.d && stored.d && minus(stored, x), ...around(x, stored, format) };
}

/* ---- Words, in the order of LANGUAGES ---- */
const LANGUAGES = ["en", "zh", "vi", "fa"];
const SAMPLES = "0.1 1e-7 1/3 -0 inf nan 0x2e66";
const WORDS = {
  direction: ["ltr", "ltr", "ltr", "rtl"],
  number: ["Number", "数", "Số", "عدد"],
  format: ["Format", "格式", "Định dạng", "قالب"],
  sign: ["sign", "符号", "dấu", "علامت"],
  exponent: ["exponent", "指数", "số mũ", "نما"],
  fraction: ["fraction", "尾数", "phần lẻ", "کسر"],
  stored: ["Stored value", "存储的值", "Giá trị được lưu", "مقدار ذخیره‌شده"],
  zero: ["zero", "零", "số 0", "صفر"],
  subnormal: ["subnormal number", "非规格化数", "số dưới chuẩn", "عدد زیرنرمال"],
  normal: ["normal number", "规格化数", "số chuẩn tắc", "عدد نرمال"],
  infinity: ["infinity", "无穷大", "vô cực", "بی‌نهایت"],
  nan: ["not a number (NaN)", "非数（NaN）", "không phải số (NaN)", "ناعدد (NaN)"],
  error: ["Error", "误差", "Sai số", "خطا"],
  typed: ["Typed number", "输入的数", "Số đã nhập", "عدد واردشده"],
  below: ["Neighbour below", "下方相邻值", "Giá trị kề dưới", "همسایهٔ پایین"],
  middle: ["Midpoint", "中点", "Điểm giữa", "نقطهٔ میانی"],
  above: ["Neighbour above", "上方相邻值", "Giá trị kề trên", "همسایهٔ بالا"],
  exact: ["Stored exactly.", "可以精确表示。", "Được lưu chính xác.", "دقیقاً ذخیره می‌شود."],
  tie: ["A tie: exactly half-way between the neighbours.", "平局：恰好在两个相邻值的正中间。", "Hòa: nằm đúng chính giữa hai giá trị kề.", "تساوی: درست در میانهٔ دو همسایه."],
  to_below: ["Nearer the neighbour below.", "离下方相邻值更近。", "Gần giá trị kề dưới hơn.", "به همسایهٔ پایین نزدیک‌تر است."],
  to_above: ["Nearer the neighbour above.", "离上方相邻值更近。", "Gần giá trị kề trên hơn.", "به همسایهٔ بالا نزدیک‌تر است."],
  over: ["Overflow: the largest value is {max}.", "上溢：最大值是 {max}。", "Tràn trên: giá trị lớn nhất là {max}.", "سرریز: بزرگ‌ترین مقدار {max} است."],
  under: ["Below the smallest value.", "小于最小值。", "Nhỏ hơn giá trị nhỏ nhất.", "کوچک‌تر از کوچک‌ترین مقدار."],
  negative: ["{format} has no negative values.", "{format} 不能表示负数。", "{format} không có giá trị âm.", "{format} مقدار منفی ندارد."],
  rounding: ["Rounding", "舍入", "Làm tròn", "گرد کردن"],
  nearest_even: ["nearest, ties to even", "就近，平局取偶", "gần nhất, hòa về số chẵn", "نزدیک‌ترین، در تساوی به زوج"],
  nearest_away: ["nearest, ties away from 0", "就近，平局远离 0", "gần nhất, hòa ra xa 0", "نزدیک‌ترین، در تساوی دور از 0"],
  toward_zero: ["toward 0", "向 0", "về phía 0", "به سوی 0"],
  up: ["up", "向上", "lên trên", "رو به بالا"],
  down: ["down", "向下", "xuống dưới", "رو به پایین"],
  to_odd: ["to odd", "取奇", "về số lẻ", "به فرد"],
  bad: ["Not a number. Write it like {samples}", "这不是数。请这样写：{samples}", "Không phải là số. Hãy viết như {samples}", "این عدد نیست. نمونه‌ها: {samples}"],
  wide: ["{format} has only {bits} bits.", "{format} 只有 {bits} 位。", "{format} chỉ có {bits} bit.", "{format} فقط {bits} بیت دارد."],
  long: ["Too many digits, or too large an exponent.", "位数太多，或指数太大。", "Quá nhiều chữ số hoặc số mũ quá lớn.", "رقم‌ها یا نمای عدد بیش از اندازه بزرگ است."],
  no_nan: ["{format} has no NaN.", "{format} 没有 NaN。", "{format} không có NaN.", "{format} مقدار NaN ندارد."],
};

/** A word of the page's language; what is filled in keeps its own direction (LRI ... PDI). */
function say(key, values = {}) {
  const language = LANGUAGES.indexOf(document.documentElement.lang.slice(0, 2));
  return WORDS[key][Math.max(language, 0)].replace(/\{(\w+)\}/g, (_, name) => `\u2066${values[name]}\u2069`);
}

/* ---- The element: the field and the list of formats stay, all below them is written anew at each change. ---- */
const STYLE = `
:host { display: block; margin: 1.5rem 0; container-type: inline-size; }
.box { --ink: var(--qlab-ink, #1f262e); --muted: var(--qlab-muted, #57626d); --grid: var(--qlab-grid, #dad9d5); --paper: var(--qlab-paper, #fdfcfa); --below: var(--qlab-c0, #0b5f94); --above: var(--qlab-c1, #b4480b);
  padding: 1rem; border: 1px solid var(--grid); border-radius: .5rem; background: var(--paper); color: var(--ink); font: .95rem/1.6 var(--qlab-font-ui, system-ui, sans-serif); }
.row { display: flex; flex-wrap: wrap; align-items: start; gap: .5rem; }
label, dt, .name, code { color: var(--muted); font-size: .85rem; }
label { display: grid; flex: 1 1 11rem; min-width: 0; }
[dir=ltr], code { font-family: var(--pst-font-family-monospace, ui-monospace, monospace); unicode-bidi: isolate; overflow-wrap: anywhere; }
input, select, button { font: inherit; color: var(--ink); background: none; border: 1px solid var(--muted); border-radius: .3rem; min-width: 0; }
input, select { height: 2.4rem; padding: 0 .5rem; font-size: 1rem; background: var(--paper); }
:focus-visible { outline: 3px solid var(--below); outline-offset: 1px; position: relative; z-index: 1; }
[aria-invalid=true], #message { border-color: currentColor; color: var(--qlab-bad, #b3261e); }
p { margin: .3rem 0; min-height: 1lh; }
.field { padding: .4rem .4rem .1rem; border-radius: .4rem; text-align: center; }
.field button { width: 1.6rem; height: 2.1rem; padding: 0; margin-right: -1px; border-radius: 0; cursor: pointer; }
[aria-pressed=true] { font-weight: 700; box-shadow: inset 0 -3px; }
.stale { opacity: .3; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .8rem 0; }
dd { margin: 0; min-width: 0; min-height: 1lh; }
dd [dir=ltr], td [dir=ltr] { display: inline-block; }
dd button { border: 0; padding: 0; color: inherit; text-decoration: underline; cursor: pointer; }
.value { font-size: 1.1rem; }
sup { line-height: 0; }
.line { position: relative; height: 1.6rem; margin: 0 .4rem; border-bottom: 2px solid var(--grid); }
i { position: absolute; bottom: -2px; width: 2px; height: 1.1rem; margin-left: -1px; background: currentColor; }
i.typed { bottom: -6px; width: 10px; height: 10px; margin-left: -5px; border-radius: 50%; }
.below { color: var(--below); } .above { color: var(--above); } .middle { color: var(--muted); }
table { border-collapse: collapse; width: 100%; }
td { padding: .2rem .5rem .2rem 0; border-top: 1px solid var(--grid); }
@container (max-width: 36rem) { dl { grid-template-columns: 1fr; } .value { min-height: 2lh; } }
`;
const COLOURS = { sign: "#f7c9c9", exponent: "#c9e8d0", fraction: "#cbdffa" };

const ltr = (html, name = "") => `<span class="${name}" dir="ltr">${html}</span>`;
const row = (key, html, mark = "") => `<dt>${mark}${WORDS[key] ? say(key) : key}</dt><dd>${html}</dd>`;
const raised = (base, exponent) => `${base}<sup>${String(exponent).replace("-", "−")}</sup>`;
const hex = (code, { bits }) => `0x${code.toString(16).padStart(Math.ceil(bits / 4), "0")}`;

/** The formula of a finite code, filled in. */
function formula({ negative, field, tail, normal, significand, exponent, d }, { M, bias, sign }) {
  if (!d) return "";
  const share = `${tail}/${raised(2, M)}`;
  return (sign ? `${raised("(−1)", Number(negative))} × ` : "") + raised(2, `${normal ? field : 1} − ${bias}`)
    + (M ? ` × ${normal ? `(1 + ${share})` : share}` : "") + ` = ${negative ? "−" : ""}${significand} × ${raised(2, exponent)}`;
}

/** The bits, field by field. A long field breaks into groups of 8 where the page is narrow. */
function boxes(stored, { E, M, bits }, current) {
  const digits = stored.code.toString(2).padStart(bits, "0");
  const fields = [["sign", 0, bits - E - M, Number(stored.negative)], ["exponent", bits - E - M, E, stored.field], ["fraction", bits - M, M, stored.tail]];
  return fields.filter(([, , count]) => count).map(([field, from, count, value]) => {
    const box = (i) => `<button type="button" id="bit${i}" tabindex="${i === current ? 0 : -1}" aria-pressed="${digits[i] === "1"}" aria-label="${say(field)} ${i - from + 1}/${count}">${digits[i]}</button>`;
    const size = count > 11 ? 8 : count, group = (_, g) => Array.from({ length: Math.min(size, count - g * size) }, (_, i) => box(from + g * size + i)).join("");
    const groups = Array.from({ length: Math.ceil(count / size) }, group);
    return `<div class="field" style="background: var(--qlab-${field}, ${COLOURS[field]})"><div class="row">${groups.map((html) => `<span>${html}</span>`).join("")}</div><small dir="auto">${say(field)} = ${value}</small></div>`;
  }).join("");
}

function readout({ x, stored, off, step, verdict, share, middle, ...sides }, format) {
  const steps = off && { ...off, n: times2(off.n, -step), d: times2(off.d, step) };
  const error = !off ? "–" : off.n ? `${decimal(off, 10)} (${decimal(steps, 6)} ULP)` : "0";
  const link = (end) => sides[end] ? `<button type="button" id="${end}">${sides[end].name}</button>` : "–";
  const texts = { below: link("below"), typed: x.d ? decimal(x, 24) : x.kind, middle: middle ? decimal(middle, 24) : "–", above: link("above") };
  const places = { below: 0, middle: 0.5, above: 1, typed: share };
  const marks = Object.keys(places).map((end) => `<i class="${end}" style="left: ${places[end] * 100}%"></i>`);
  const result = (rounding) => {
    const { code, name } = decode(round(x, format, rounding), format);
    const end = ["below", "above"].find((end) => verdict !== "exact" && sides[end]?.code === code);
    return `<tr><td class="name">${say(rounding)} <code>${rounding}</code></td><td>${ltr(`${{ below: "↓ ", above: "↑ " }[end] ?? ""}${name}`, end)} ${ltr(`<code>${hex(code, format)}</code>`)}</td></tr>`;
  };
  return `<dl>${row("stored", `${ltr(stored.d ? decimal(stored, 60) : stored.name, "value")}<br>${ltr(hex(stored.code, format))} ${say(stored.kind)}<br>${ltr(formula(stored, format))}`)}
${row("error", ltr(error))}${row("ULP", ltr(step === undefined ? "–" : `${raised(2, step)} = ${decimal(binary(1n, step), 20)}`))}</dl>
<div class="line" dir="ltr">${share === undefined ? "" : marks.join("")}</div>
<p>${verdict ? say(verdict, { format: format.name, max: decode(format.largest, format).name }) : ""}</p>
<dl>${Object.keys(texts).map((end) => row(end, ltr(texts[end], end), `<b class="${end}">●</b> `)).join("")}</dl>
<table>${ROUNDINGS.map(result).join("")}</table>`;
}

class QlabFloatExplorer extends HTMLElement {
  static observedAttributes = ["format", "value"];
  static data = { FORMATS, ROUNDINGS, LANGUAGES, WORDS };
  static explain = (text, name) => explain(text, getFormat(name));

  /** A text in a format: { code, value }, or { error }. */
  static encode(text, name, rounding) {
    const format = getFormat(name), x = parse(text, format), code = x.error ? undefined : round(x, format, rounding);
    return code === undefined ? { error: x.error ?? "no_nan" } : { code: hex(code, format), value: decode(code, format).name };
  }

  #format;
  #shown;
  #current = 0; // the bit that the Tab key leads to
  #at = (id) => this.shadowRoot.getElementById(id);

  connectedCallback() {
    if (this.shadowRoot) return;
    this.attachShadow({ mode: "open" }).innerHTML = `<style>${STYLE}</style><div class="box" dir="${say("direction")}"><div class="row">
<label>${say("number")}<input id="text" type="text" dir="ltr" spellcheck="false" autocomplete="off" aria-describedby="message"></label>
<label>${say("format")}<select id="format" dir="ltr">${Object.keys(FORMATS).map((name) => `<option>${name}</option>`).join("")}</select></label></div>
<p id="message" role="status"></p><div id="out"></div></div>`;
    this.#at("text").addEventListener("input", () => this.#update());
    this.#at("format").addEventListener("change", (event) => this.#choose(event.target.value));
    this.#at("out").addEventListener("click", (event) => this.#click(event.target.id));
    this.#at("out").addEventListener("keydown", (event) => this.#move(event));
    this.attributeChangedCallback();
  }

  attributeChangedCallback() {
    if (!this.shadowRoot) return;
    this.#at("text").value = this.getAttribute("value") ?? "0.1";
    const name = this.getAttribute("format");
    this.#choose(name in FORMATS ? name : "float16");
  }

  #choose(name) {
    this.#at("format").value = name;
    this.#format = getFormat(name);
    this.#current = 0;
    this.#update(0n); // stays, faded, if the text is no number of this format
    this.#update();
  }

  /** A bit is turned over, or a neighbour gone to. */
  #click(id) {
    const format = this.#format, bit = /^bit(\d+)$/.exec(id)?.[1], next = this.#shown[id];
    if (!bit && !next) return;
    this.#current = Number(bit ?? this.#current);
    const { code, d, ...value } = bit ? decode(this.#shown.stored.code ^ (1n << BigInt(format.bits - 1 - bit)), format) : next;
    this.#at("text").value = d ? decimal({ d, ...value }, 800) : value.name; // all digits: another format rounds them too
    this.#update(code);
  }

  #move(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -64, End: 64 }[event.key];
    if (!step || !event.target.id.startsWith("bit")) return;
    event.preventDefault();
    this.#at(`bit${this.#current}`).tabIndex = -1;
    this.#current = Math.min(Math.max(this.#current + step, 0), this.#format.bits - 1);
    this.#at(`bit${this.#current}`).tabIndex = 0;
    this.#at(`bit${this.#current}`).focus();
  }

  /** Show what the text stands for, or the code that was chosen. */
  #update(code) {
    const format = this.#format, shown = explain(this.#at("text").value, format, code), out = this.#at("out");
    this.#at("message").textContent = shown.error ? say(shown.error, { format: format.name, bits: format.bits, samples: SAMPLES }) : "";
    this.#at("text").setAttribute("aria-invalid", Boolean(shown.error));
    out.classList.toggle("stale", Boolean(shown.error));
    if (shown.error) return;
    this.#shown = shown;
    const held = this.shadowRoot.activeElement?.id;
    out.innerHTML = `<div class="row" role="group" dir="ltr">${boxes(shown.stored, format, this.#current)}</div>${readout(shown, format)}`;
    if (held && held !== "text") this.#at(held)?.focus();
  }
}

window.QlabFloatExplorer = QlabFloatExplorer;
customElements.define("qlab-float-explorer", QlabFloatExplorer);
})();
