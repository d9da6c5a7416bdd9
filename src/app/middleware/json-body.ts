/**
 * The text of a body as JSON, or INVALID_PARAMS that says where it stops being JSON. The engine's own parser
 * tells no position, so a small scanner looks for it, on the error path only. Called by limits.ts.
 *
 * Always: what is returned nests at most `depthMax` deep, so that whatever walks it later may recurse.
 */
import { OrchestratorError } from "../../domain/errors.ts";

/** Deeper than any request or any JSON Schema that a person writes. */
const depthMax = 64;

export function parseJsonBody(text: string): unknown {
  checkDepth(text);
  try {
    return JSON.parse(text) as unknown;
  } catch (cause) {
    const at = errorOffset(text);
    const before = text.slice(0, at);
    let line = 1;
    for (let end = before.indexOf("\n"); end !== -1; end = before.indexOf("\n", end + 1)) line += 1;
    const column = at - (before.lastIndexOf("\n") + 1) + 1;
    const what = at >= text.length ? "it ends too early" : "this is where it stops being JSON";
    throw new OrchestratorError(
      "INVALID_PARAMS",
      `The body is not valid JSON: line ${line}, column ${column} (character ${at}): ${what}.`,
      { details: { in: "body", offset: at, line, column }, cause },
    );
  }
}

function checkDepth(text: string): void {
  let depth = 0;
  for (let at = 0; at < text.length; at += 1) {
    const char = text.charCodeAt(at);
    if (char === quote) {
      at = endOfString(text, at);
    } else if (char === openBrace || char === openBracket) {
      depth += 1;
      if (depth > depthMax) {
        throw new OrchestratorError("INVALID_PARAMS", `The body nests deeper than ${depthMax} levels.`, {
          details: { in: "body", offset: at },
        });
      }
    } else if (char === closeBrace || char === closeBracket) {
      depth -= 1;
    }
  }
}

const quote = 0x22;
const backslash = 0x5c;
const openBrace = 0x7b;
const closeBrace = 0x7d;
const openBracket = 0x5b;
const closeBracket = 0x5d;

/** Index of the closing quote of the string that opens at `start`; the text's length when there is none. */
function endOfString(text: string, start: number): number {
  for (let at = text.indexOf('"', start + 1); at !== -1; at = text.indexOf('"', at + 1)) {
    let slashes = 0;
    while (text.charCodeAt(at - 1 - slashes) === backslash) slashes += 1;
    if (slashes % 2 === 0) return at;
  }
  return text.length;
}

/** Offset of the first character that cannot belong to a JSON text; the length when more is needed. */
function errorOffset(text: string): number {
  /** What may come next inside each open container. */
  type Want = "value" | "value-or-end" | "key" | "key-or-end" | "colon" | "comma-or-end" | "nothing";
  const open: ("{" | "[")[] = [];
  let want: Want = "value";
  const afterValue = (): Want => (open.length === 0 ? "nothing" : "comma-or-end");
  let next = 0;
  for (;;) {
    const at = firstSolid(text, next);
    const mark = text.charAt(at);
    next = at + 1;
    const wantsValue: boolean = want === "value" || want === "value-or-end";
    const wantsKey: boolean = want === "key" || want === "key-or-end";
    if (mark === "{" || mark === "[") {
      if (!wantsValue) return at;
      open.push(mark);
      want = mark === "{" ? "key-or-end" : "value-or-end";
    } else if (mark === ":") {
      if (want !== "colon") return at;
      want = "value";
    } else if (mark === ",") {
      if (want !== "comma-or-end") return at;
      want = open.at(-1) === "{" ? "key" : "value";
    } else if (mark === "}" || mark === "]") {
      const opener = mark === "}" ? "{" : "[";
      const closes = want === "comma-or-end" || want === (opener === "{" ? "key-or-end" : "value-or-end");
      if (open.at(-1) !== opener || !closes) return at;
      open.pop();
      want = afterValue();
    } else if (mark === '"') {
      if (!wantsValue && !wantsKey) return at;
      const end = endOfString(text, at);
      const wrong = errorInString(text, at + 1, end);
      if (wrong !== -1) return wrong;
      // A string that never closes is best shown by where the text ends.
      if (end === text.length) return end;
      next = end + 1;
      want = wantsKey ? "colon" : afterValue();
    } else {
      const length = wantsValue ? wordLength(text, at) : 0;
      if (length === 0) return at;
      next = at + length;
      want = afterValue();
    }
  }
}

/** First control character, or start of a broken escape, of a string's inside; -1: none. */
function errorInString(text: string, start: number, end: number): number {
  for (let at = start; at < end; at += 1) {
    const char = text.charCodeAt(at);
    if (char < 0x20) return at;
    if (char !== backslash) continue;
    // A string that is cut off inside an escape is only too short.
    if (at + 1 === text.length) return -1;
    const kind = text.charAt(at + 1);
    if (kind === "u" ? !/^[0-9a-fA-F]{4}$/.test(text.slice(at + 2, at + 6)) : !'"\\/bfnrt'.includes(kind))
      return at;
    at += kind === "u" ? 5 : 1;
  }
  return -1;
}

const wordHere = /[\w.+-]*/y;

/** Length of the number, true, false or null at `at`; 0: none is there. */
function wordLength(text: string, at: number): number {
  wordHere.lastIndex = at;
  const word = wordHere.exec(text)?.[0] ?? "";
  return /^(?:-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)$/.test(word) ? word.length : 0;
}

/** Index of the first character from `from` on that is no white space; the text's length when there is none. */
function firstSolid(text: string, from: number): number {
  let at = from;
  for (; at < text.length; at += 1) {
    const char = text.charCodeAt(at);
    if (char !== 0x20 && char !== 0x0a && char !== 0x0d && char !== 0x09) break;
  }
  return at;
}
