/**
 * What is wrong with a configuration, told so that the operator can put it right: where, what was found, what
 * is expected. Everything that reads or compiles configuration reports here; the commands print it.
 *
 * Always holds: reporting never stops at the first problem.
 */
import { distance } from "fastest-levenshtein";

export interface Problem {
  /** The file's path, a flag (`--addr`) or a variable (`ORCHD_ADDR`). */
  readonly source: string;
  /** As in `pools[0].slots`; empty for the file as a whole, a flag or a variable. */
  readonly path: string;
  /** 1-based; null where the file is not to blame. */
  readonly line: number | null;
  readonly column: number | null;
  /** What was found, what is expected, what to do. */
  readonly message: string;
}

export type Segments = readonly (string | number)[];

export function formatProblem(problem: Problem): string {
  const place =
    problem.line === null ? problem.source : `${problem.source}:${problem.line}:${problem.column}`;
  return problem.path === ""
    ? `${place}: ${problem.message}`
    : `${place}: ${problem.path}: ${problem.message}`;
}

const pathText = (segments: Segments): string =>
  segments.reduce<string>(
    (path, segment) =>
      typeof segment === "number" ? `${path}[${segment}]` : path === "" ? segment : `${path}.${segment}`,
    "",
  );

/** The nearest of `known`, where it is near enough to be what was meant. */
export function nearestName(name: string, known: readonly string[]): string | null {
  const wanted = name.toLowerCase();
  const begun = known.filter((candidate) => {
    const name = candidate.toLowerCase();
    return Math.min(name.length, wanted.length) > 2 && (name.startsWith(wanted) || wanted.startsWith(name));
  });
  if (begun.length === 1) return begun[0] ?? null;
  let nearest: string | null = null;
  let best = Math.max(1, Math.floor(wanted.length / 2)) + 1;
  for (const candidate of known) {
    const d = distance(wanted, candidate.toLowerCase());
    if (d < best) {
      best = d;
      nearest = candidate;
    }
  }
  return nearest;
}

export const orList = (names: readonly string[]): string =>
  names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} or ${names.at(-1)}`;

export interface Place {
  readonly line: number;
  readonly column: number;
}

/** Collects problems; knows the places of the file's keys and values. */
export class Problems {
  readonly found: Problem[] = [];
  readonly #wrong: string[] = [];
  readonly #source: string;
  readonly #keys = new Map<string, Place>();
  readonly #values = new Map<string, Place>();

  constructor(source: string) {
    this.#source = source;
  }

  notePlace(segments: Segments, of: "key" | "value", place: Place): void {
    (of === "key" ? this.#keys : this.#values).set(JSON.stringify(segments), place);
  }

  /** A problem of the file; its place is the value's, else the nearest enclosing one's. */
  atPath(segments: Segments, message: string, of: "key" | "value" = "value"): void {
    this.atPlace(this.#placeOf(segments, of), message, segments);
  }

  atPlace(place: Place, message: string, segments: Segments = []): void {
    this.#wrong.push(pathText(segments));
    this.found.push({ ...place, source: this.#source, path: pathText(segments), message });
  }

  /** A problem of a flag, a variable or of something outside the file. */
  of(source: string, message: string): void {
    this.found.push({ source, path: "", line: null, column: null, message });
  }

  /** The file's from top to bottom, then the rest as they were found. */
  inOrder(): Problem[] {
    const end = Number.MAX_SAFE_INTEGER;
    return this.found.toSorted(
      (a, b) => (a.line ?? end) - (b.line ?? end) || (a.column ?? end) - (b.column ?? end),
    );
  }

  /** Whether anything at this path or below it is wrong: what depends on it is then not judged. */
  hasBelow(segments: Segments): boolean {
    const path = pathText(segments);
    return this.#wrong.some(
      (wrong) => wrong === path || wrong.startsWith(`${path}.`) || wrong.startsWith(`${path}[`),
    );
  }

  #placeOf(segments: Segments, of: "key" | "value"): Place {
    const own = (of === "key" ? this.#keys : this.#values).get(JSON.stringify(segments));
    if (own !== undefined) return own;
    for (let length = segments.length - 1; length > 0; length -= 1) {
      const outer = JSON.stringify(segments.slice(0, length));
      const place = this.#keys.get(outer) ?? this.#values.get(outer);
      if (place !== undefined) return place;
    }
    return { line: 1, column: 1 };
  }
}
