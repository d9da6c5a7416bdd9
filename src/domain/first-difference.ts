/**
 * Where two texts begin to differ, for `replay`. Pure.
 */

export interface FirstDifference {
  /** UTF-8 bytes before it, the same in both. */
  readonly byteOffset: number;
  /** Index of the first code point that differs. */
  readonly charOffset: number;
  /** Around that place, each at most `2 * contextChars` characters. */
  readonly expected: string;
  readonly actual: string;
}

const contextChars = 40;

/** Null: they are equal. A character is never cut. */
export function firstDifference(expected: string, actual: string): FirstDifference | null {
  if (expected === actual) return null;
  const length = Math.min(expected.length, actual.length);
  let at = 0;
  while (at < length && expected.charCodeAt(at) === actual.charCodeAt(at)) at++;
  // Two characters may share the first half of a pair.
  if (at > 0 && isHighSurrogate(expected.charCodeAt(at - 1))) at--;
  const before = expected.slice(0, at);
  return {
    byteOffset: utf8Length(before),
    charOffset: codePoints(before),
    expected: around(expected, at),
    actual: around(actual, at),
  };
}

const isHighSurrogate = (unit: number): boolean => unit >= 0xd800 && unit <= 0xdbff;

const around = (text: string, at: number): string => {
  const from = text.slice(Math.max(0, at - contextChars), at);
  return (from + text.slice(at, at + contextChars)).toWellFormed();
};

function codePoints(text: string): number {
  let count = 0;
  for (const _ of text) count++;
  return count;
}

/** Bytes of the text in UTF-8; half a pair counts as U+FFFD does. */
export function utf8Length(text: string): number {
  let bytes = 0;
  for (const char of text) {
    const code = char.codePointAt(0) ?? 0;
    bytes += code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
  }
  return bytes;
}
