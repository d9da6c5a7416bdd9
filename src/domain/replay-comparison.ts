/**
 * Whether a run said the same as the one that a transcript tells of. Pure; the command `replay` asks.
 */
import { type FirstDifference, firstDifference, utf8Length } from "./first-difference.ts";
import type { ReadTranscript } from "./transcript-reading.ts";

/** What a stream brought, as far as it was read. */
export interface SeenRun {
  readonly text: string;
  readonly tokens: number;
  readonly started: Readonly<Record<string, unknown>> | null;
  /** Null: it was not read to its end. */
  readonly end: Readonly<Record<string, unknown>> | null;
}

export interface Comparison {
  readonly equal: boolean;
  /** text, or result for what has no text. */
  readonly of: "text" | "result";
  /** Of what was told then, in UTF-8. */
  readonly bytes: number;
  readonly difference: FirstDifference | null;
  /** What names the engine and the end, and differs: it may be the reason. */
  readonly otherwise: readonly {
    readonly name: string;
    readonly recorded: unknown;
    readonly replayed: unknown;
  }[];
}

/** A task that failed or was canceled had not said all: what it said has to be the beginning. */
export const isPartial = ({ ending }: ReadTranscript): boolean => ending.type === "error";

/** Null: the transcript does not tell what was answered. */
export function compareRuns(then: ReadTranscript, now: SeenRun): Comparison | null {
  const { pieces, ending } = then;
  if (pieces === null || ending.resultOmitted) return null;
  const otherwise = differing(then, now);
  const { result } = ending.data;
  if (result !== undefined) {
    const expected = JSON.stringify(result);
    const actual = JSON.stringify(now.end?.result ?? null);
    const difference = firstDifference(expected, actual);
    return { equal: difference === null, of: "result", bytes: utf8Length(expected), difference, otherwise };
  }
  const expected = pieces.map(({ text }) => text).join("");
  const actual = isPartial(then) ? now.text.slice(0, expected.length) : now.text;
  const difference = firstDifference(expected, actual);
  return { equal: difference === null, of: "text", bytes: utf8Length(expected), difference, otherwise };
}

const told = [
  "engine",
  "engine_version",
  "model_ref",
  "pool_id",
  "replica_id",
  "seed",
  "determinism",
] as const;

function differing(then: ReadTranscript, now: SeenRun): Comparison["otherwise"] {
  const before = then.events.find(({ type }) => type === "started")?.data ?? {};
  const found: { name: string; recorded: unknown; replayed: unknown }[] = told.map((name) => ({
    name,
    recorded: before[name],
    replayed: now.started?.[name],
  }));
  if (!isPartial(then))
    for (const name of ["finish_reason", "tokens_in", "tokens_out"])
      found.push({ name, recorded: then.ending.data[name], replayed: now.end?.[name] });
  return found.filter(
    ({ recorded, replayed }) => recorded !== undefined && replayed !== undefined && recorded !== replayed,
  );
}
