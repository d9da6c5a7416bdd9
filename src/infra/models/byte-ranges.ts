/**
 * Which bytes of a file are there: half-open ranges, sorted, apart from each other. part-file.ts keeps one.
 */
import { assert } from "../../domain/assert.ts";

export type ByteRange = readonly [from: number, to: number];

export class ByteRanges {
  #ranges: ByteRange[] = [];

  static of(ranges: readonly ByteRange[]): ByteRanges {
    const set = new ByteRanges();
    for (const [from, to] of ranges) set.add(from, to);
    return set;
  }

  add(from: number, to: number): void {
    assert(Number.isSafeInteger(from) && from >= 0 && from <= to, "a range runs forwards");
    if (from === to) return;
    const before = this.#ranges.filter((range) => range[1] < from);
    const behind = this.#ranges.filter((range) => range[0] > to);
    const joined = this.#ranges.slice(before.length, this.#ranges.length - behind.length);
    const [first, last] = [joined[0], joined.at(-1)];
    this.#ranges = [
      ...before,
      [Math.min(from, first?.[0] ?? from), Math.max(to, last?.[1] ?? to)],
      ...behind,
    ];
  }

  get bytes(): number {
    return this.#ranges.reduce((sum, [from, to]) => sum + to - from, 0);
  }

  /** A copy that stays as it is. */
  list(): readonly ByteRange[] {
    return this.#ranges;
  }

  /** What is missing of the first `size` bytes, in pieces of at most `pieceBytes`, first bytes first. */
  missing(size: number, pieceBytes: number): ByteRange[] {
    const gaps: ByteRange[] = [];
    let at = 0;
    const gap = (to: number): void => {
      for (; at < to; at += pieceBytes) gaps.push([at, Math.min(to, at + pieceBytes)]);
    };
    for (const [from, to] of this.#ranges) {
      gap(Math.min(from, size));
      at = to;
    }
    gap(size);
    return gaps;
  }
}
