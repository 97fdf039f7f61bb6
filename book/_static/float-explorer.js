// <qlab-float-explorer format="float16" value="0.1">: type a number, click its bits, see how a format stores it.
// Arithmetic is exact, in fractions of BigInts: 0.1 is one tenth. Rounding and overflow are those of qlab.encode.
(() => {
"use strict";

/* ---- Formats: exponent bits, fraction bits, bias, infinities, NaNs, subnormals, signed. A test compares them with
   qlab.FORMATS. A format without subnormals must have no fraction bits either (float8_e8m0fnu). ---- */
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
  const [E, M, bias, infinities, nans, subnormals, hasSign] = FORMATS[name];
  const tails = (1n << BigInt(M)) - 1n, magnitudes = (1n << BigInt(E + M)) - 1n, sign = hasSign ? magnitudes + 1n : 0n;
  const nan = { ieee: magnitudes ^ (tails >> 1n), all_ones: magnitudes, negative_zero: sign }[nans];
  const largest = magnitudes - ({ ieee: tails, all_ones: 1n }[nans] ?? 0n) - BigInt(infinities);
  return {
    name, E, M, bias, subnormals, tails, magnitudes, sign, nan, largest, bits: hasSign + E + M,
    infinity: infinities ? largest + 1n : undefined,
    emin: subnormals ? 1 - bias : -bias,
    minusZero: hasSign && nans !== "negative_zero",
  };
}

/* ---- Numbers: { n, d, negative } is the fraction n/d (a sign besides, for minus zero); infinity and NaN have no d. ---- */
const times2 = (n, power) => (power > 0 ? n << BigInt(power) : n);
const binary = (n, power, negative) => ({ negative, n: times2(negative ? -n : n, power), d: times2(1n, -power) });
const minus = (a, b) => ({ n: a.n * b.d - b.n * a.d, d: a.d * b.d });
const absolute = (n) => (n < 0n ? -n : n);
const length = (n) => n.toString(2).length;

/** In decimal, cut to some significant digits; an ellipsis says that more would follow. */
function decimal({ n, d, negative }, digits) {
  const scale = length(d), sign = negative || n < 0n ? "-" : ""; // d divides 10**scale: its only factors are 2 and 5
  let text = ((absolute(n) * 10n ** BigInt(scale)) / d).toString();
  const exponent = n ? text.length - 1 - scale : 0, scientific = exponent < -7 || exponent > 22;
  const point = scientific ? 1 : Math.max(exponent + 1, 1);
  text = text.replace(/0+$/, "");
  if (text.length > digits) text = text.slice(0, digits) + "…";
  if (!scientific) text = "0".repeat(Math.max(-exponent, 0)) + text.padEnd(point, "0");
  return sign + text.slice(0, point) + (text[point] ? "." : "") + text.slice(point) + (scientific ? `e${exponent}` : "");
}

/** A typed number, or the code that a bit pattern is; { error } names a message. */
function parse(typed, format) {
  const text = typed.normalize("NFKC").replace(/[٠-٩۰-۹]/g, (c) => c.charCodeAt(0) & 15).replace("٫", ".").replace(/−/g, "-").trim();
  if (/^0x[0-9a-f]+$/i.test(text)) {
    return BigInt(text) >> BigInt(format.bits) ? { error: "wide" } : decode(BigInt(text), format);
  }
  const negative = text[0] === "-", special = /^[+-]?(inf|nan)(inity)?$/i.exec(text);
  if (special) return { negative, kind: special[1].toLowerCase() };
  const [found, whole, decimals, power] = /^[+-]?(?=\.?\d)(\d*)\.?(\d*)(?:e([+-]?\d+))?$/i.exec(text) ?? [];
  if (found === undefined) return { error: "bad" };
  const exponent = Number(power ?? 0) - decimals.length, ten = 10n ** BigInt(Math.min(Math.abs(exponent), 9999));
  if (text.length > 2000 || Math.abs(exponent) > 9999) return { error: "long" };
  const n = BigInt(whole + decimals) * (negative ? -1n : 1n);
  return exponent > 0 ? { negative, n: n * ten, d: 1n } : { negative, n, d: ten };
}

/* ---- Codes ---- */

/** All about a code. Its name is the shortest decimal that float64 reads back. */
function decode(code, format) {
  const magnitude = code & format.magnitudes, negative = (code & format.sign) > 0n, sign = negative ? "-" : "";
  const field = Number(magnitude >> BigInt(format.M)), tail = magnitude & format.tails;
  const normal = field > 0 || !format.subnormals, significand = normal ? tail + format.tails + 1n : tail;
  const exponent = Math.max(field - format.bias, format.emin) - format.M;
  const known = { code, negative, field, tail, normal, significand, exponent };
  if (magnitude === format.infinity) return { ...known, kind: "inf", name: `${sign}inf` };
  if (magnitude > format.largest || code === format.nan) return { ...known, kind: "nan", name: "nan" };
  const kind = normal ? "normal" : tail ? "subnormal" : "zero", name = sign + Number(significand) * 2 ** exponent;
  return { ...known, kind, name, ...binary(significand, exponent, negative) };
}

/** The value a step below (-1n) or above (1n) a code, if there is one. */
function neighbour(code, step, format) {
  const magnitude = code & format.magnitudes, place = (code & format.sign ? -magnitude : magnitude) + step;
  if (absolute(place) > (format.infinity ?? format.largest) || (place < 0n && !format.sign)) return undefined;
  return decode(place < 0n ? -place | format.sign : place, format);
}

/** A magnitude's code with a sign, as far as the format has one. */
const withSign = (code, negative, format) => (negative && (code || format.minusZero) ? code | format.sign : code);

/* ---- Rounding ---- */

/** Cut a magnitude to the format's bits: the code below it, and rest/whole, the share of a step that is cut off. */
function cut(x, format) {
  const n = absolute(x.n), guess = length(n) - length(x.d); // of log2, perhaps one too high
  const exponent = n ? guess - (times2(n, -guess) < times2(x.d, guess)) : format.emin;
  const binade = Math.max(exponent, format.emin), step = binade - format.M;
  const scaled = times2(n, -step), whole = times2(x.d, step), kept = scaled / whole;
  const code = kept + (BigInt(binade - format.emin) << BigInt(format.M)) - (format.subnormals ? 0n : 1n);
  if (code < 0n) return { code: 0n, rest: 0n, step, under: true }; // there is no zero: the smallest value has to do
  return { code, kept, rest: scaled % whole, whole, step };
}

function goesUp({ code, rest, whole }, negative, rounding) {
  const odd = (code & 1n) > 0n, twice = rest * 2n;
  if (rounding === "nearest_even") return twice > whole || (twice === whole && odd);
  if (rounding === "nearest_away") return twice >= whole;
  return rounding === "to_odd" ? !odd : rounding === (negative ? "down" : "up");
}

/** The code of a number; undefined for a NaN where the format has none. */
function round(x, format, rounding = "nearest_even") {
  if (x.code !== undefined) return x.code;
  if (x.kind === "nan" || (!format.sign && x.negative && x.n !== 0n)) return format.nan;
  const parts = x.d ? cut(x, format) : { code: format.largest + 1n };
  let code = parts.code + BigInt(parts.rest ? goesUp(parts, x.negative, rounding) : 0);
  if (code > format.largest) { // IEEE 754, section 7.4: where the direction leads there, infinity (or NaN in its place)
    const due = !x.d || rounding.startsWith("nearest") || rounding === (x.negative ? "down" : "up");
    code = (due ? format.infinity ?? format.nan : undefined) ?? format.largest;
  }
  return code === format.nan ? code : withSign(code, x.negative, format);
}

/** The values on either side of x, or of the value that it is exactly; where x lies between them; and the verdict. */
function around(x, stored, format) {
  const sides = (code) => ({ below: neighbour(code, -1n, format), above: neighbour(code, 1n, format) });
  if (!x.d) return stored.kind === "nan" ? {} : sides(stored.code);
  if (!format.sign && x.n < 0n) return { verdict: "negative" };
  const { code, kept, rest, whole, step, under } = cut(x, format), over = code > format.largest;
  if (under) return { above: decode(0n, format), step, verdict: "under" };
  const inner = withSign(over ? format.largest : code, x.negative, format), found = { ...sides(inner), step };
  if (!rest && !over) return { ...found, verdict: "exact" };
  found[x.negative ? "above" : "below"] = decode(inner, format);
  if (over) return { ...found, verdict: "over" };
  // Above the largest value numbers are rounded as if the exponents went on, so that there is a midpoint too.
  const share = Number((rest * 100000n) / whole) / 100000, twice = rest * 2n;
  const nearer = twice > whole === x.negative ? "to_below" : "to_above";
  return {
    ...found, share: x.negative ? 1 - share : share, middle: binary(kept * 2n + 1n, step - 1, x.negative),
    verdict: code === format.largest ? "over" : twice === whole ? "tie" : nearer,
  };
}

/** What is shown of a text, or of a code, in a format; { error } where it is no number of the format. */
function explain(text, format, given) {
  const x = given === undefined ? parse(text, format) : decode(given, format), code = x.error ? undefined : round(x, format);
  if (code === undefined) return { error: x.error ?? "no_nan" };
  const stored = decode(code, format);
  return { x, stored, off: x.d && stored.d && minus(stored, x), ...around(x, stored, format) };
}

/* ---- Words: key, English, Chinese, Vietnamese, Persian ---- */
const WORDS = Object.fromEntries(`
number|Number|数|Số|عدد
format|Format|格式|Định dạng|قالب
sign|sign|符号|dấu|علامت
exponent|exponent|指数字段|số mũ|فیلد نما
fraction|fraction|尾数字段|phần lẻ|فیلد کسری
stored|Stored value|存下的值|Giá trị được lưu|مقدار ذخیره‌شده
zero|zero|零|số 0|صفر
subnormal|subnormal number|非规格化数|số dưới chuẩn|عدد زیرنرمال
normal|normal number|规格化数|số chuẩn tắc|عدد نرمال
inf|infinity|无穷大|vô cực|بی‌نهایت
nan|not a number (NaN)|NaN（非数）|không phải số (NaN)|ناعدد (NaN)
error|Error|误差|Sai số|خطا
typed|Typed number|输入的数|Số đã nhập|عدد واردشده
below|Neighbour below|下方邻居|Giá trị kề dưới|همسایهٔ پایینی
middle|Midpoint|中点|Điểm giữa|نقطهٔ میانی
above|Neighbour above|上方邻居|Giá trị kề trên|همسایهٔ بالایی
exact|Stored exactly.|可以精确表示。|Được lưu chính xác.|دقیقاً ذخیره می‌شود.
tie|A tie: exactly half-way between the neighbours.|平局：恰好在两个邻居的正中间。|Hòa: nằm đúng chính giữa hai giá trị kề.|تساوی: درست میان دو همسایه.
to_below|Nearer the neighbour below.|离下方邻居更近。|Gần giá trị kề dưới hơn.|به همسایهٔ پایینی نزدیک‌تر است.
to_above|Nearer the neighbour above.|离上方邻居更近。|Gần giá trị kề trên hơn.|به همسایهٔ بالایی نزدیک‌تر است.
over|Beyond the largest value, {max}.|超出最大值 {max}。|Vượt quá giá trị lớn nhất, {max}.|فراتر از بزرگ‌ترین مقدار، {max}.
under|Below the smallest value.|小于最小值。|Nhỏ hơn giá trị nhỏ nhất.|کوچک‌تر از کوچک‌ترین مقدار.
negative|{format} has no negative values.|{format} 没有负数。|{format} không có giá trị âm.|قالب {format} مقدار منفی ندارد.
nearest_even|nearest, ties to even|就近舍入，平局取偶|gần nhất, hòa về số chẵn|به نزدیک‌ترین، در تساوی به زوج
nearest_away|nearest, ties away from 0|就近舍入，平局远离零|gần nhất, hòa ra xa 0|به نزدیک‌ترین، در تساوی دور از صفر
toward_zero|toward 0|向零舍入|về phía 0|رو به صفر
up|up|向上舍入|lên trên|رو به بالا
down|down|向下舍入|xuống dưới|رو به پایین
to_odd|to odd|向奇数舍入|về số lẻ|به فرد
bad|Not a number. Examples: {samples}|这不是数。例如：{samples}|Không phải số. Ví dụ: {samples}|این عدد نیست. نمونه‌ها: {samples}
wide|{format} has only {bits} bits.|{format} 只有 {bits} 位。|{format} chỉ có {bits} bit.|قالب {format} فقط {bits} بیت دارد.
long|Too many digits, or too large an exponent.|位数太多，或指数太大。|Quá nhiều chữ số hoặc số mũ quá lớn.|شمار رقم‌ها یا نمای عدد بیش از اندازه بزرگ است.
no_nan|{format} has no NaN.|{format} 没有 NaN。|{format} không có NaN.|قالب {format} مقدار NaN ندارد.
`.trim().split("\n").map((line) => [line.split("|")[0], line.split("|").slice(1)]));

const language = () => Math.max(["en", "zh", "vi", "fa"].indexOf(document.documentElement.lang.slice(0, 2)), 0);

/** A word of the page's language; what is filled in keeps its own direction, between LRI and PDI. */
function say(key, format) {
  const values = { samples: "0.1 1e-7 0x2e66", format: format?.name, bits: format?.bits, max: format && decode(format.largest, format).name };
  return WORDS[key][language()].replace(/\{(\w+)\}/g, (_, name) => `\u2066${values[name]}\u2069`);
}

/* ---- The element: the field and the list of formats stay, all below them is written anew at each change. ---- */
const STYLE = `
:host { display: block; margin: 1.5rem 0; container-type: inline-size; }
* { box-sizing: border-box; min-width: 0; }
.box { --ink: var(--qlab-ink, #1f262e); --muted: var(--qlab-muted, #57626d); --grid: var(--qlab-grid, #dad9d5); --paper: var(--qlab-paper, #fdfcfa); --below: var(--qlab-c0, #0b5f94);
  padding: 1rem; border: 1px solid var(--grid); border-radius: .5rem; background: var(--paper); color: var(--ink); font: .95rem/1.6 var(--qlab-font-ui, system-ui, sans-serif); }
.row { display: flex; flex-wrap: wrap; align-items: start; gap: .5rem; }
[dir=rtl] [role=group] { justify-content: end; }
label, dt, td, small { color: var(--muted); font-size: .85rem; }
label { flex: 1 1 11rem; }
input, select, button { font: inherit; color: var(--ink); background: var(--paper); border: 1px solid var(--muted); border-radius: .3rem; }
input, select { display: block; width: 100%; height: 2.5rem; padding: 0 .5rem; font-size: 1rem; }
input, select, span, td small, .field button { font-family: var(--pst-font-family-monospace, ui-monospace, monospace); }
:focus-visible { outline: 3px solid var(--below); position: relative; z-index: 1; }
p { margin: .3rem 0; min-height: 1lh; }
#message { color: var(--qlab-bad, #b3261e); }
.bits { display: flex; flex-wrap: wrap; justify-content: center; }
.field { padding: .4rem; border-radius: .4rem; text-align: center; }
.field small { color: inherit; }
.field button { width: 1.6rem; height: 2.1rem; padding: 0; background: none; margin-right: -1px; border-radius: 0; cursor: pointer; }
.long { max-width: 38rem; justify-content: start; }
.long button:nth-child(8n) { margin-right: .3rem; }
[aria-pressed=true] { font-weight: 700; box-shadow: inset 0 -3px; }
.sign { background: var(--qlab-sign, #f7c9c9); } .exponent { background: var(--qlab-exponent, #c9e8d0); } .fraction { background: var(--qlab-fraction, #cbdffa); }
.stale { opacity: .3; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; align-items: baseline; margin: .8rem 0; }
dd { margin: 0; min-height: 1lh; }
span { display: inline-block; color: var(--ink); overflow-wrap: anywhere; }
dd button { border: 0; padding: 0; color: inherit; text-decoration: underline; cursor: pointer; }
.value { font-size: 1.1rem; }
.ends span { font-size: .85rem; }
sup { line-height: 0; }
.line { position: relative; height: 1.6rem; margin: 0 .4rem; border-bottom: 2px solid var(--grid); }
i { position: absolute; bottom: -2px; width: 2px; height: 1.1rem; margin-left: -1px; background: currentColor; }
i.typed { bottom: -6px; width: 10px; height: 10px; margin-left: -5px; border-radius: 50%; }
.typed { color: var(--ink); } .middle { color: var(--muted); } .below { color: var(--below); } .above { color: var(--qlab-c1, #b4480b); }
table { border-collapse: collapse; width: 100%; }
td { padding-block: .2rem; padding-inline: 0 .5rem; border-top: 1px solid var(--grid); }
td span { margin-inline-end: .4rem; }
@container (max-width: 42rem) { .facts { grid-template-columns: 1fr; } .value { font-size: inherit; } .wide { min-height: 2lh; } .long { max-width: 13.3rem; } td small { display: none; } td:first-child { width: 36%; } td span + span { display: block; width: max-content; } }
`;

const ltr = (html, name = "") => `<span class="${name}" dir="ltr">${html}</span>`;
const row = (label, html) => `<dt>${label}</dt><dd>${html}</dd>`;
const raised = (base, exponent) => `${base}<sup>${String(exponent).replace("-", "−")}</sup>`;
const hex = (code, { bits }) => `0x${code.toString(16).padStart(Math.ceil(bits / 4), "0")}`;

/** The formula of a finite code, filled in. */
function formula({ negative, field, tail, normal }, { M, bias, sign }) {
  const share = `${tail}/${raised(2, M)}`;
  return (sign ? `${raised("(−1)", Number(negative))} × ` : "") + raised(2, `${normal ? field : 1} − ${bias}`)
    + (M ? ` × ${normal ? `(1 + ${share})` : share}` : "");
}

/** The bits, field by field; where the page is narrow, a long field breaks into rows of 8. */
function boxes({ code, negative, field, tail }, { E, M, bits }, current) {
  const digits = [...code.toString(2).padStart(bits, "0")], signs = bits - E - M;
  const box = (digit, i, name, place) =>
    `<button id="bit${i}" tabindex="${i === current ? 0 : -1}" aria-pressed="${digit > 0}" aria-label="${say(name)} ${place}">${digit}</button>`;
  return [["sign", 0, signs, Number(negative)], ["exponent", signs, E, field], ["fraction", signs + E, M, tail]]
    .filter(([, , count]) => count)
    .map(([name, from, count, value]) => `<div class="field ${name}"><div class="bits ${count > 11 ? "long" : ""}">${digits
      .slice(from, from + count).map((digit, i) => box(digit, from + i, name, `${i + 1}/${count}`)).join("")}</div><small dir="auto">${say(name)} = ${value}</small></div>`)
    .join("");
}

/** The error, also in steps. */
function difference(off, step) {
  if (!off?.n) return off ? "0" : "–";
  return `${decimal(off, 10)} (${decimal({ n: times2(off.n, -step), d: times2(off.d, step) }, 4)} ulp)`;
}

function readout({ x, stored, off, step, verdict, share, middle, ...sides }, format) {
  const wide = format.E > 5 ? "wide" : ""; // may need two lines on a phone
  const value = ltr(stored.d ? decimal(stored, 60) : stored.name, `value ${wide}`), ulp = step === undefined ? "–" : `${raised(2, step)} = ${decimal(binary(1n, step), 17)}`;
  const link = (end) => (sides[end] ? `<button id="${end}">${sides[end].name}</button>` : "–");
  const ends = { below: link("below"), typed: x.d ? decimal(x, 15) : x.kind, middle: middle ? decimal(middle, 15) : "–", above: link("above") };
  const places = { below: 0, middle: 50, above: 100, typed: share * 100 };
  const marks = Object.keys(places).map((end) => `<i class="${end}" style="left: ${places[end]}%"></i>`).join("");
  const result = (rounding) => {
    const { code, name } = decode(round(x, format, rounding), format);
    const end = off?.n === 0n ? "" : ["below", "above"].find((end) => sides[end]?.code === code) ?? "";
    return `<tr><td>${say(rounding)} <small>${rounding}</small><td>${ltr({ "": "", below: "↓\u00a0", above: "↑\u00a0" }[end] + name, end)} ${ltr(hex(code, format), "middle")}`;
  };
  return `<dl class="facts">${row(say("stored"), `${value}<br>${ltr(hex(stored.code, format))} ${say(stored.kind)}<br>${ltr(stored.d ? formula(stored, format) : "–", wide)}`)}
${row(say("error"), ltr(difference(off, step)))}${row("ulp", ltr(ulp))}</dl>
<div class="line" dir="ltr">${middle ? marks : ""}</div><p>${verdict ? say(verdict, format) : ""}</p>
<dl class="ends">${Object.keys(ends).map((end) => row(`<b class="${end}">●</b> ${say(end)}`, ltr(ends[end], end))).join("")}</dl>
<table>${ROUNDINGS.map(result).join("")}</table>`;
}

class QlabFloatExplorer extends HTMLElement {
  static data = { FORMATS, ROUNDINGS, WORDS };
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
    this.attachShadow({ mode: "open" }).innerHTML = `<style>${STYLE}</style><div class="box" dir="${language() === 3 ? "rtl" : "ltr"}"><div class="row">
<label>${say("number")}<input id="text" type="text" dir="ltr" spellcheck="false" autocomplete="off" aria-describedby="message"></label>
<label>${say("format")}<select id="format" dir="ltr"><option>${Object.keys(FORMATS).join("<option>")}</select></label></div>
<p id="message" role="status"></p><div id="out"></div></div>`;
    this.#at("text").oninput = () => this.#update();
    this.#at("format").onchange = (event) => this.#choose(event.target.value);
    this.#at("out").onclick = (event) => this.#click(event.target.id);
    this.#at("out").onkeydown = (event) => this.#move(event);
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
    const bit = /^bit(\d+)$/.exec(id)?.[1], format = this.#format;
    if (bit) this.#current = Number(bit);
    const next = bit ? decode(this.#shown.stored.code ^ (1n << BigInt(format.bits - 1 - bit)), format) : this.#shown[id];
    if (!next?.name) return;
    this.#at("text").value = next.d ? decimal(next, 800) : next.name; // all digits, so that another format rounds all
    this.#update(next.code);
  }

  #move(event) {
    const next = this.#at(`bit${this.#current + { ArrowLeft: -1, ArrowRight: 1 }[event.key]}`);
    if (!next || event.target.id !== `bit${this.#current}`) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    this.#current = Number(next.id.slice(3));
    next.tabIndex = 0;
    next.focus();
  }

  /** Show what the text stands for, or the code that was chosen. */
  #update(code) {
    const format = this.#format, shown = explain(this.#at("text").value, format, code), out = this.#at("out");
    this.#at("message").textContent = shown.error ? say(shown.error, format) : "";
    this.#at("text").ariaInvalid = Boolean(shown.error);
    out.className = shown.error ? "stale" : "";
    if (shown.error) return;
    this.#shown = shown;
    const held = this.shadowRoot.activeElement?.id;
    out.innerHTML = `<div class="row" role="group" dir="ltr">${boxes(shown.stored, format, this.#current)}</div>${readout(shown, format)}`;
    if (held !== "text") this.#at(held)?.focus();
  }
}

window.QlabFloatExplorer = QlabFloatExplorer;
customElements.define("qlab-float-explorer", QlabFloatExplorer);
})();
