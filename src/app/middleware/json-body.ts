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
    const line = before.split("\n").length;
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
  const tokens =
    /[ \t\n\r]*(?:([{}[\]:,])|("(?:[^"\\]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")|(-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)(?![\w.+-]))/y;
  /** What may come next inside each open container. */
  type Want = "value" | "value-or-end" | "key" | "key-or-end" | "colon" | "comma-or-end" | "nothing";
  const open: ("{" | "[")[] = [];
  let want: Want = "value";
  const afterValue = (): Want => (open.length === 0 ? "nothing" : "comma-or-end");
  for (;;) {
    const from = tokens.lastIndex;
    const match = tokens.exec(text);
    if (match === null) return firstSolid(text, from);
    const at = tokens.lastIndex - (match[1] ?? match[2] ?? match[3] ?? "").length;
    const mark = match[1];
    const bare = match[2] === undefined ? -1 : controlCharacter(match[2]);
    if (bare !== -1) return at + bare;
    const wantsValue = want === "value" || want === "value-or-end";
    const wantsKey = want === "key" || want === "key-or-end";
    if (mark === undefined) {
      if (wantsValue) want = afterValue();
      else if (wantsKey && match[2] !== undefined) want = "colon";
      else return at;
    } else if (mark === "{" || mark === "[") {
      if (!wantsValue) return at;
      open.push(mark);
      want = mark === "{" ? "key-or-end" : "value-or-end";
    } else if (mark === ":") {
      if (want !== "colon") return at;
      want = "value";
    } else if (mark === ",") {
      if (want !== "comma-or-end") return at;
      want = open.at(-1) === "{" ? "key" : "value";
    } else {
      const opener = mark === "}" ? "{" : "[";
      const closes = want === "comma-or-end" || want === (opener === "{" ? "key-or-end" : "value-or-end");
      if (open.at(-1) !== opener || !closes) return at;
      open.pop();
      want = afterValue();
    }
  }
}

/** Where a string holds a character that JSON wants escaped; -1: nowhere. */
function controlCharacter(text: string): number {
  for (let at = 0; at < text.length; at += 1) if (text.charCodeAt(at) < 0x20) return at;
  return -1;
}

function firstSolid(text: string, from: number): number {
  let at = from;
  while (at < text.length && " \t\n\r".includes(text.charAt(at))) at += 1;
  // A string that never closes is best shown by where the text ends.
  return text.charCodeAt(at) === quote && endOfString(text, at) === text.length ? text.length : at;
}
