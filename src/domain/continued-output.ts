/**
 * HOT. What the engine says in a continued attempt, made into what goes on the stream: text that was sent already
 * is compared and kept back, text that may end a stop string from before the cut waits. Made by the attempt runner
 * from a plan (continuation.ts); once both are done a piece costs one comparison.
 *
 * Always holds: text is compared by characters, never by pieces, which may be cut otherwise this time; after
 * "diverged" or "stopped" nothing is emitted; what is emitted are whole characters, never empty.
 */
import { assert } from "./assert.ts";
import { type GoingPlan, unnamedId } from "./continuation.ts";
import { CutStops } from "./stop-strings.ts";

/**
 * going: go on. stopped: a stop string from before the cut is complete: abort the engine, the task ends with
 * finish_reason stop. diverged: abort the engine, `planAfterDivergence`; exact is "no".
 */
export type OutputState = "going" | "stopped" | "diverged";

export class ContinuedOutput {
  private current: OutputState = "going";
  /** UTF-16 units of `expected` that were said again. */
  private matched = 0;
  private readonly expected: string;
  private readonly expectedIds: readonly number[] | null;
  private repeatedIds: number[] | null = [];
  private stops: CutStops | null;
  private heldIds: number[] | null = [];
  private tokens = 0;

  constructor(
    plan: Pick<GoingPlan, "expected" | "expectedIds" | "openText">,
    stop: readonly string[],
    private readonly emit: (text: string, ids: readonly number[]) => void,
  ) {
    this.expected = plan.expected;
    this.expectedIds = plan.expectedIds;
    const stops = plan.openText === "" ? null : new CutStops(plan.openText, stop);
    this.stops = stops?.open ? stops : null;
  }

  get state(): OutputState {
    return this.current;
  }
  /** False: what the engine says now is new. */
  get repeating(): boolean {
    return this.matched < this.expected.length;
  }

  /** Tokens that the engine has said, repeated ones too: its count where it was stopped from here. */
  get tokensSaid(): number {
    return this.tokens;
  }

  /** A piece of the engine's. */
  take(text: string, ids: readonly number[]): OutputState {
    if (this.current !== "going") return this.current;
    this.tokens += Math.max(1, ids.length);
    if (this.repeating) this.compare(text, ids);
    else this.pass(text, ids);
    return this.current;
  }

  /** The engine ended by itself: "diverged" when it had less to say than was sent. */
  end(): OutputState {
    if (this.current !== "going") return this.current;
    if (this.repeating) this.current = "diverged";
    else if (this.stops !== null) {
      // No stop string can be completed any more: what waited is text.
      const { held } = this.stops;
      this.stops = null;
      if (held !== "") this.emit(held, this.heldIds ?? []);
    }
    return this.current;
  }

  private compare(text: string, ids: readonly number[]): void {
    const units = Math.min(text.length, this.expected.length - this.matched);
    if (!this.expected.startsWith(text.slice(0, units), this.matched)) {
      this.current = "diverged";
      return;
    }
    this.matched += units;
    this.repeatedIds = joined(this.repeatedIds, ids);
    if (units < text.length) this.pass(text.slice(units), this.newIds());
  }

  /** The ids behind those that were logged; [] where the two do not meet at the border of a token. */
  private newIds(): readonly number[] {
    const said = this.repeatedIds;
    const logged = this.expectedIds;
    this.repeatedIds = null;
    if (said === null || logged === null || said.includes(unnamedId)) return [];
    return logged.every((id, at) => said[at] === id) ? said.slice(logged.length) : [];
  }

  private pass(text: string, ids: readonly number[]): void {
    if (this.stops === null) {
      this.emit(text, ids);
      return;
    }
    this.heldIds = joined(this.heldIds, ids);
    const { stops } = this;
    const taken = stops.take(text);
    if (taken === "stopped") this.current = "stopped";
    else if (taken === "passed") {
      this.stops = null;
      assert(stops.held !== "", "what passes has text");
      this.emit(stops.held, this.heldIds ?? []);
    }
  }
}

/** Null once one piece had no ids: then the ids of the whole are not known. */
function joined(ids: number[] | null, more: readonly number[]): number[] | null {
  if (ids === null || more.length === 0) return null;
  for (const id of more) ids.push(id);
  return ids;
}
