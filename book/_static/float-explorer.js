// <qlab-float-explorer format="float16" value="0.1">: type a number, click its bits, see how a format stores it.
// Arithmetic is exact: numbers are fractions of BigInts, so that 0.1 is one tenth, and rounding is that of qlab.encode.
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

/** What follows from a format's parameters; codes are BigInts. A code that the format lacks is undefined. */
function getFormat(name) {
  const [E, M, bias, infinities, nans, subnormals, signed] = FORMATS[name];
  const fractions = (1n << BigInt(M)) - 1n, magnitudes = (1n << BigInt(E + M)) - 1n, sign = signed ? magnitudes + 1n : 0n;
  const nan = { ieee: magnitudes ^ (fractions >> 1n), all_ones: magnitudes, negative_zero: sign }[nans];
  const reserved = { ieee: fractions, all_ones: 1n }[nans] ?? 0n;
  const largest = magnitudes - reserved - BigInt(infinities);
  return {
    name, E, M, bias, subnormals, fractions, magnitudes, sign, nan, largest, bits: signed + E + M,
    infinity: infinities ? largest + 1n : undefined,
    emin: subnormals ? 1 - bias : -bias,
    minusZero: signed && nans !== "negative_zero",
  };
}

/* ---- Numbers: { negative, n, d } is the fraction n/d with a sign of its own; else { negative, infinite } or { nan }. ---- */
const times2 = (n, power) => (power > 0 ? n << BigInt(power) : n);
const fraction = (n, power, negative) => ({ negative, n: times2(n, power), d: times2(1n, -power) });
const signed = ({ negative, n }) => (negative ? -n : n);

/** a - b */
function minus(a, b) {
  const n = signed(a) * b.d - signed(b) * a.d;
  return { negative: n < 0n, n: n < 0n ? -n : n, d: a.d * b.d };
}

/** Floor of the binary logarithm of n/d. */
function log2(n, d) {
  if (n === 0n) return -Infinity;
  const guess = n.toString(2).length - d.toString(2).length;
  return times2(n, -guess) < times2(d, guess) ? guess - 1 : guess;
}

/** A fraction in decimal, cut to some significant digits; an ellipsis says that more would follow. */
function decimal({ negative, n, d }, digits) {
  const sign = negative ? "-" : "";
  if (n === 0n) return `${sign}0`;
  let exponent = Math.floor(log2(n, d) * Math.log10(2)), text, exact;
  for (let again = true; again; exponent += text.length - digits) { // the first guess may be one off
    const shift = digits - 1 - exponent, power = 10n ** BigInt(Math.abs(shift));
    const [a, b] = shift < 0 ? [n, d * power] : [n * power, d];
    text = (a / b).toString();
    exact = a % b === 0n;
    again = text.length !== digits;
  }
  if (exact) text = text.replace(/0+$/, "");
  const more = exact ? "" : "…";
  if (exponent < -10 || exponent > 22) return `${sign}${text[0]}${text[1] ? "." : ""}${text.slice(1)}${more}e${exponent}`;
  if (exponent < 0) return `${sign}0.${"0".repeat(-exponent - 1)}${text}${more}`;
  text = text.padEnd(exponent + 1, "0");
  const rest = text.slice(exponent + 1);
  return sign + text.slice(0, exponent + 1) + (rest || more ? "." : "") + rest + more;
}

/** What is typed, as a number; a bit pattern brings its code with it; else { error } names a message. */
function parse(typed, format) {
  const text = typed.normalize("NFKC").replace(/[٠-٩۰-۹]/g, (c) => c.charCodeAt(0) & 15).replace("٫", ".").replace(/−/g, "-").trim();
  if (/^0x[0-9a-f]+$/i.test(text)) {
    const code = BigInt(text);
    return code >> BigInt(format.bits) ? { error: "wide" } : { ...valueOf(code, format), code };
  }
  const special = /^([+-]?)(?:inf(?:inity)?|∞|(nan))$/i.exec(text);
  if (special) return special[2] ? { nan: true } : { negative: special[1] === "-", infinite: true };
  const found = /^([+-]?)(?=\.?\d)(\d*)\.?(\d*)(?:e([+-]?\d+))?$/i.exec(text) ?? /^([+-]?)(\d+)()()\/(\d*[1-9]\d*)$/.exec(text);
  if (!found) return { error: "bad" };
  const [, sign, whole, decimals, power = "0", divisor = "1"] = found;
  const exponent = Number(power || 0) - decimals.length;
  if (text.length > 2000 || Math.abs(exponent) > 9999) return { error: "long" }; // would take too long
  const ten = 10n ** BigInt(Math.abs(exponent)), n = BigInt(whole + decimals);
  return { negative: sign === "-", n: exponent > 0 ? n * ten : n, d: BigInt(divisor) * (exponent < 0 ? ten : 1n) };
}

/* ---- Codes ---- */
const isNegative = (code, format) => (code & format.sign) !== 0n;

/** The fields of a code, and the magnitude as significand * 2**exponent. */
function split(code, format) {
  const field = Number((code & format.magnitudes) >> BigInt(format.M)), tail = code & format.fractions;
  const normal = field > 0 || !format.subnormals;
  const exponent = Math.max(field - format.bias, format.emin) - format.M;
  return { field, fraction: tail, normal, significand: normal ? tail + format.fractions + 1n : tail, exponent };
}

/** zero, subnormal, normal, infinity or nan. */
function kindOf(code, format) {
  const magnitude = code & format.magnitudes;
  if (magnitude === format.infinity) return "infinity";
  if (magnitude > format.largest || (code === format.nan)) return "nan";
  const { normal, significand } = split(code, format);
  return normal ? "normal" : significand ? "subnormal" : "zero";
}

function valueOf(code, format) {
  const kind = kindOf(code, format), negative = isNegative(code, format);
  if (kind === "nan") return { nan: true };
  if (kind === "infinity") return { negative, infinite: true };
  const { significand, exponent } = split(code, format);
  return fraction(significand, exponent, negative);
}

/** The shortest decimal that float64 reads back, which is how Python prints it too. */
function nameOf(code, format) {
  const kind = kindOf(code, format), sign = isNegative(code, format) ? "-" : "";
  if (kind === "nan") return "nan";
  if (kind === "infinity") return `${sign}inf`;
  const { significand, exponent } = split(code, format);
  return sign + Number(significand) * 2 ** exponent;
}

/** The code one step below (-1) or above (1) another in the order of the values, if there is one. */
function neighbour(code, direction, format) {
  if (kindOf(code, format) === "nan") return undefined;
  const magnitude = code & format.magnitudes;
  const place = (isNegative(code, format) ? -magnitude : magnitude) + BigInt(direction);
  const next = place < 0n ? -place : place;
  if (next > (format.infinity ?? format.largest) || (place < 0n && !format.sign)) return undefined;
  return place < 0n ? next | format.sign : next;
}

/* ---- Rounding ---- */

/** Cut a magnitude to the format's bits: the code below it, and rest/whole, the share of a step that is cut off. */
function cut({ n, d }, format) {
  const exponent = Math.max(log2(n, d), format.emin), step = exponent - format.M;
  const above = times2(n, -step), whole = times2(d, step);
  const hidden = format.subnormals ? 0n : format.fractions + 1n;
  const code = above / whole + (BigInt(exponent - format.emin) << BigInt(format.M)) - hidden;
  if (code < 0n) return { code: 0n, rest: 0n, whole, step, under: rest > 0n || n === 0n }; // no zero: the smallest has to do
  return { code, rest: above % whole, whole, step };
}

function goesUp({ code, rest, whole }, negative, rounding) {
  if (rest === 0n) return false;
  const odd = (code & 1n) === 1n, tie = rest * 2n === whole;
  if (rounding === "nearest_even") return tie ? odd : rest * 2n > whole;
  if (rounding === "nearest_away") return rest * 2n >= whole;
  if (rounding === "to_odd") return !odd;
  return rounding === (negative ? "down" : "up");
}

/** IEEE 754, section 7.4: infinity (or NaN in its place) where the direction leads there, else the largest value. */
function overflow(x, rounding, format) {
  const due = x.infinite || rounding.startsWith("nearest") || rounding === (x.negative ? "down" : "up");
  return (due ? format.infinity ?? format.nan : undefined) ?? format.largest;
}

/** The code of a number; undefined for a NaN where the format has none. */
function round(x, format, rounding = "nearest_even") {
  if (x.code !== undefined) return x.code;
  if (x.nan) return format.nan;
  const parts = x.infinite ? { code: format.largest + 1n, rest: 0n } : cut(x, format);
  let code = parts.code + BigInt(goesUp(parts, x.negative, rounding));
  if (!format.sign && x.negative && x.n !== 0n) return format.nan;
  if (code > format.largest) code = overflow(x, rounding, format);
  if (code === format.nan) return code; // without a sign
  return x.negative && (code || format.minusZero) ? code | format.sign : code;
}

/** The codes of the values on either side of x, or of the value that it is exactly; the exponent of a step there. */
function around(x, stored, format) {
  const sides = (code) => ({ below: neighbour(code, -1, format), above: neighbour(code, 1, format) });
  if (x.nan || x.infinite) return sides(stored);
  if (!format.sign && x.negative && x.n) return { outside: "negative" };
  const { code, rest, step, under } = cut(x, format);
  if (under) return { above: 0n, step, outside: "under" };
  const over = code > format.largest || (code === format.largest && rest > 0n);
  const magnitude = over ? format.largest : code;
  const inner = x.negative && (magnitude || format.minusZero) ? magnitude | format.sign : magnitude;
  const found = { ...sides(inner), outside: over && "over", step: over ? split(inner, format).exponent : step };
  if (rest || over) found[x.negative ? "above" : "below"] = inner;
  return found;
}

/** Where x lies between its neighbours, from 0 to 1, and their midpoint; nothing where there is no such place. */
function place(x, { below, above, outside }, format) {
  if (!x.d || outside === "negative" || (below ?? above) === undefined || (below === undefined && above === 0n)) return {};
  // Beyond the largest value numbers are rounded as if the exponents went on: one step further is the end of the line.
  const { significand, exponent } = split(format.largest, format);
  const finite = (code, negative) => {
    const value = code === undefined ? {} : valueOf(code, format);
    return value.d ? value : fraction(significand + 1n, exponent, negative);
  };
  const lower = finite(below, true), upper = finite(above, false);
  const part = minus(x, lower), whole = minus(upper, lower);
  const share = Number((signed(part) * whole.d * 100000n) / (part.d * whole.n)) / 100000;
  const twice = minus(lower, { ...upper, negative: !upper.negative });
  return share < 0 || share > 1 ? {} : { share, middle: { ...twice, d: twice.d * 2n } };
}

/** All that is shown of a text in a format; { error } where it is no number of the format. */
function explain(text, format, code) {
  const x = code === undefined ? parse(text, format) : valueOf(code, format);
  const stored = code ?? (x.error ? undefined : round(x, format));
  if (stored === undefined) return { error: x.error ?? "no_nan" };
  const kind = kindOf(stored, format), value = valueOf(stored, format), sides = around(x, stored, format);
  const error = x.d && value.d ? minus(value, x) : undefined;
  const { share, middle } = place(x, sides, format);
  let verdict = sides.outside || (error && (error.n ? "" : "exact"));
  if (verdict === "") verdict = minus(x, middle).n ? (minus(x, middle).negative ? "to_below" : "to_above") : "tie";
  return { x, code: stored, kind, value, error, share, middle: error?.n ? middle : undefined, verdict, ...sides };
}

/* ---- Words, in the order of LANGUAGES ---- */
const LANGUAGES = ["en", "zh", "vi", "fa"];
const SAMPLES = "0.1 1e-7 1/3 -0 inf nan 0x2e66";
const WORDS = {
  number: ["Number", "数", "Số", "عدد"],
  format: ["Format", "格式", "Định dạng", "قالب"],
  sign: ["sign", "符号", "dấu", "علامت"],
  exponent: ["exponent", "指数", "số mũ", "نما"],
  fraction: ["fraction", "尾数", "phần lẻ", "کسر"],
  bit: ["{field}, bit {i} of {n}", "{field}，第 {i} 位（共 {n} 位）", "{field}, bit {i} trên {n}", "{field}، بیت {i} از {n}"],
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

/* ---- The element ---- */
const STYLE = `
:host { display: block; margin: 1.5rem 0; container-type: inline-size; }
.box { border: 1px solid var(--qlab-grid, #dad9d5); border-radius: .5rem; padding: 1rem 1.1rem; background: var(--qlab-paper, #fdfcfa); color: var(--qlab-ink, #1f262e); font: .95rem/1.6 var(--qlab-font-ui, system-ui, sans-serif); }
.controls { display: flex; flex-wrap: wrap; gap: .6rem 1rem; align-items: end; }
label, small, dt, th { color: var(--qlab-muted, #57626d); font-size: .85rem; font-weight: 400; }
label { display: grid; min-width: 0; }
label:first-child { flex: 1 1 13rem; }
input, select, button { font: inherit; color: inherit; background: none; border: 1px solid var(--qlab-muted, #57626d); border-radius: .3rem; }
input, select { height: 2.4rem; padding: 0 .5rem; min-width: 0; background: var(--qlab-paper, #fdfcfa); }
input, .num, .bits button { font-family: var(--pst-font-family-monospace, ui-monospace, monospace); }
input { font-size: 1.05rem; }
[aria-invalid=true] { border-color: var(--qlab-bad, #b3261e); }
:focus-visible { outline: 3px solid var(--qlab-c0, #0b5f94); outline-offset: 1px; }
p { margin: .3rem 0; min-height: 1lh; }
#message { color: var(--qlab-bad, #b3261e); }
.bits, .field > span { display: flex; flex-wrap: wrap; gap: .4rem; }
.bits { direction: ltr; align-items: start; }
.field { padding: .4rem .5rem .1rem; border-radius: .4rem; }
.field small { display: block; text-align: center; color: inherit; }
.field span span { display: inline-flex; }
.bits button { width: 1.6rem; height: 2.1rem; padding: 0; margin-inline-end: -1px; border-radius: 0; cursor: pointer; }
.bits button:hover { background: var(--qlab-paper, #fdfcfa); }
[aria-pressed=true] { font-weight: 700; box-shadow: inset 0 -3px; }
.stale { opacity: .3; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .8rem 0; }
dd { margin: 0; min-width: 0; min-height: 1lh; }
.num { overflow-wrap: anywhere; unicode-bidi: isolate; direction: ltr; display: inline-block; }
#stored { font-size: 1.1rem; }
sup { line-height: 0; }
dd button, td button { border: 0; padding: 0; text-decoration: underline; text-underline-offset: .2em; cursor: pointer; }
.line { position: relative; height: 2rem; margin: .5rem .5rem 0; direction: ltr; border-bottom: 2px solid var(--qlab-grid, #dad9d5); }
.line i { position: absolute; bottom: -2px; width: 2px; height: 1.1rem; margin-left: -1px; background: currentColor; }
.line #at-x { bottom: -6px; width: 10px; height: 10px; margin-left: -5px; border-radius: 50%; }
.below { color: var(--qlab-c0, #0b5f94); } .above { color: var(--qlab-c1, #b4480b); } .middle { color: var(--qlab-muted, #57626d); }
table { border-collapse: collapse; width: 100%; }
td, th { padding: .2rem .5rem .2rem 0; text-align: start; border-top: 1px solid var(--qlab-grid, #dad9d5); }
@container (max-width: 36rem) { dl { grid-template-columns: 1fr; gap: 0; } dt { margin-top: .4rem; } #stored { min-height: 2lh; } #formula { min-height: var(--lines); } }
`;
})();
