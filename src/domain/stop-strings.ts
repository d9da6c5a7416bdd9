/**
 * Stop strings as text: how much of one is open at the end of a text, and the ones that begin before a cut and end
 * behind it, which an engine that starts at the cut cannot know of. Pure; the planner (continuation.ts) and the
 * output of a continued attempt (continued-output.ts) call it.
 *
 * Always holds: text that the guard passes on is not part of a stop string that began before the cut.
 */
import { assert } from "./assert.ts";

/** UTF-16 units at the end of `text` that begin one of `stops` and do not complete it; the longest such. */
export function openStopUnits(text: string, stops: readonly string[]): number {
  let longest = 0;
  for (const stop of stops) {
    for (let units = Math.min(text.length, stop.length - 1); units > longest; units--) {
      if (text.endsWith(stop.slice(0, units))) {
        longest = units;
        break;
      }
    }
  }
  return longest;
}

/**
 * Holds back the text behind a cut for as long as it may be the rest of a stop string that began before the cut;
 * no longer than the longest stop string, so it is done after a few pieces.
 */
export class CutStops {
  /** What each stop string that is open at the cut still needs. */
  private rests: string[];
  private heldText = "";

  /** `sent`: all text before the cut, or its end: nothing before the longest stop string's length matters. */
  constructor(sent: string, stops: readonly string[]) {
    this.rests = stops.flatMap((stop) => {
      const rests: string[] = [];
      for (let units = Math.min(sent.length, stop.length - 1); units > 0; units--)
        if (sent.endsWith(stop.slice(0, units))) rests.push(stop.slice(units));
      return rests;
    });
  }

  /** False: no stop string can straddle the cut any more, and nothing is held. */
  get open(): boolean {
    return this.rests.length > 0;
  }

  get held(): string {
    return this.heldText;
  }

  /**
   * Takes text; "stopped": a stop string is complete and what was held is part of it; "held"; or "passed": all that
   * was held, this text included, may go out.
   */
  take(text: string): "stopped" | "held" | "passed" {
    assert(this.open, "only an open guard takes text");
    const held = this.heldText + text;
    this.heldText = held;
    if (this.rests.some((rest) => held.startsWith(rest))) return "stopped";
    this.rests = this.rests.filter((rest) => rest.startsWith(held));
    return this.open ? "held" : "passed";
  }
}
