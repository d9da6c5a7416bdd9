/**
 * The configuration file as text: parses the YAML, remembers where every key and value stands, and checks the
 * whole against the schema. app/config.ts calls `readDocument`.
 *
 * Always holds: every problem found so is told with path, line and column, all of them at once; and a value
 * that may be a secret (anything below auth.keys, artifacts.s3's keys, a pool's env) is never quoted.
 */
import type { Static, TSchema } from "@sinclair/typebox";
import { type ValueError, ValueErrorType } from "@sinclair/typebox/errors";
import { Value } from "@sinclair/typebox/value";
import { isMap, isScalar, isSeq, LineCounter, type Node, type ParsedNode, parseDocument } from "yaml";
import { nearestName, orList, type Place, type Problems, type Segments } from "./config-problems.ts";
import { configFileSchema, type FilledConfigFile } from "./config-schema.ts";

const isSecret = (segments: Segments): boolean =>
  (segments[0] === "auth" && segments[1] === "keys") ||
  (segments[0] === "artifacts" && segments[1] === "s3" && /^(access|secret)_/.test(String(segments[2]))) ||
  (segments[0] === "pools" && segments[2] === "env");

function found(segments: Segments, value: unknown): string {
  if (value === null) return "nothing (null)";
  if (Array.isArray(value)) return `a list of ${value.length}`;
  if (typeof value === "object") return "a map";
  if (typeof value === "string") {
    if (isSecret(segments) && segments.at(-1) !== "id") return `a text of ${value.length} characters`;
    return value.length > 80 ? `a text of ${value.length} characters` : JSON.stringify(value);
  }
  return String(value);
}

const literalsOf = (schema: TSchema): unknown[] =>
  Array.isArray(schema.anyOf) ? schema.anyOf.flatMap(literalsOf) : "const" in schema ? [schema.const] : [];

function expected(schema: TSchema): string {
  if (typeof schema["x-expected"] === "string") return schema["x-expected"];
  if (Array.isArray(schema.anyOf)) {
    const literals = literalsOf(schema);
    if (literals.length === schema.anyOf.length) return orList(literals.map(String));
    return schema.anyOf.map((member: TSchema) => expected(member)).join(" or ");
  }
  if ("const" in schema) return JSON.stringify(schema.const);
  switch (schema.type) {
    case "integer":
      return `an integer from ${schema.minimum} to ${schema.maximum}`;
    case "number":
      return schema.exclusiveMinimum === undefined
        ? `a number from ${schema.minimum} to ${schema.maximum}`
        : `a number above ${schema.exclusiveMinimum}, at most ${schema.maximum}`;
    case "boolean":
      return "true or false";
    case "string":
      return "a text";
    case "array": {
      const least = schema.minItems === undefined ? "" : `at least ${schema.minItems} and `;
      return schema.maxItems === undefined ? "a list" : `a list of ${least}at most ${schema.maxItems}`;
    }
    case "object":
      return "a map";
    default:
      return "null";
  }
}

function laterMessage(schema: TSchema, what: string, value: unknown): string | null {
  const later: unknown = schema["x-later"];
  if (!Array.isArray(later)) return null;
  const choices = literalsOf(schema);
  // Where the key works but some values do not yet, only those are "not yet"; the others are mistakes.
  if (choices.length > 1 && !later.includes(value)) return null;
  const instead = choices.length > 0 ? `leave it out or use ${orList(choices.map(String))}` : "leave it out";
  return `found ${what}, which is not supported by this version; ${instead}`;
}

/** Descends into the member of a union that the value is meant as, so that the message is about the part that is wrong. */
function memberFor(schema: TSchema, value: unknown): TSchema | null {
  if (!Array.isArray(schema.anyOf) || typeof value !== "object" || value === null) return null;
  const wanted = Array.isArray(value) ? "array" : "object";
  return schema.anyOf.find((member: TSchema) => member.type === wanted) ?? null;
}

const segmentsOf = (root: unknown, pointer: string): (string | number)[] => {
  const segments: (string | number)[] = [];
  let value: unknown = root;
  for (const raw of pointer.split("/").slice(1)) {
    const name = raw.replaceAll("~1", "/").replaceAll("~0", "~");
    segments.push(Array.isArray(value) ? Number(name) : name);
    value =
      typeof value === "object" && value !== null ? (value as Record<string, unknown>)[name] : undefined;
  }
  return segments;
};

/** One problem for each place: the checker tells a missing property twice. */
function reportErrors(schema: TSchema, value: unknown, prefix: Segments, problems: Problems): void {
  const told = new Set<string>();
  // Unknown keys are looked up in the map that holds them, which the error itself does not carry.
  for (const error of Value.Errors(schema, value)) {
    if (told.has(error.path)) continue;
    told.add(error.path);
    report(error, [...prefix, ...segmentsOf(value, error.path)], problems);
  }
}

function report(error: ValueError, segments: Segments, problems: Problems): void {
  const { schema, value } = error;
  if (error.type === ValueErrorType.ObjectAdditionalProperties) {
    const name = String(segments.at(-1));
    if (typeof schema.patternProperties === "object") {
      problems.atPath(
        segments,
        `found the name ${JSON.stringify(name)}, expected letters, digits and _`,
        "key",
      );
      return;
    }
    const known = Object.keys(schema.properties);
    const nearest = nearestName(name, known);
    const hint = nearest === null ? `known here: ${known.join(", ")}` : `did you mean ${nearest}?`;
    problems.atPath(segments, `unknown key; ${hint}`, "key");
    return;
  }
  if (error.type === ValueErrorType.ObjectRequiredProperty) {
    problems.atPath(segments, `missing, expected ${expected(schema)}`);
    return;
  }
  const what = found(segments, value);
  const later = laterMessage(schema, what, value);
  if (later !== null) {
    problems.atPath(segments, later);
    return;
  }
  const member = memberFor(schema, value);
  if (member !== null) reportErrors(member, value, segments, problems);
  else problems.atPath(segments, `found ${what}, expected ${expected(schema)}${typeHint(value)}`);
}

/** Numbers in quotes are the commonest slip with YAML. */
const typeHint = (value: unknown): string =>
  typeof value === "string" && /^-?\d+(\.\d+)?$/.test(value) ? " (without quotes)" : "";

/** No key of ours lies deeper; what does is below an unknown one, which is told. */
const depthMax = 8;

/** Notes where everything stands. False: a key is no name, and the map could not become an object. */
function walk(
  node: Node | null,
  segments: Segments,
  problems: Problems,
  placeOf: (offset: number) => Place,
): boolean {
  if (node?.range) problems.notePlace(segments, "value", placeOf(node.range[0]));
  if (segments.length > depthMax) return true;
  let named = true;
  if (isSeq(node)) {
    node.items.forEach((item, index) => {
      named = walk(item as Node | null, [...segments, index], problems, placeOf) && named;
    });
  }
  if (!isMap(node)) return named;
  const seen = new Map<string, Place>();
  for (const pair of node.items as { key: ParsedNode; value: ParsedNode | null }[]) {
    const place = placeOf(pair.key.range[0]);
    if (!isScalar(pair.key)) {
      problems.atPlace(place, "found a key that is a list, a map or an alias, expected a name", segments);
      named = false;
      continue;
    }
    const name = String(pair.key.value);
    const path = [...segments, name];
    const first = seen.get(name);
    if (first === undefined) {
      seen.set(name, place);
      problems.notePlace(path, "key", place);
      named = walk(pair.value, path, problems, placeOf) && named;
    } else {
      problems.atPlace(place, `duplicate key; it stands on line ${first.line} already`, path);
    }
  }
  return named;
}

export interface ReadDocument {
  /** With every default applied, and without the parts that are wrong. */
  readonly file: FilledConfigFile;
  /** Whether `file` says what the text says. */
  readonly whole: boolean;
}

/**
 * Reads the text of a configuration file; an empty one is valid. What is wrong is told and taken out, so that
 * the checks which need several keys can still judge the rest and everything is told at once.
 */
export function readDocument(text: string, problems: Problems): ReadDocument {
  const before = problems.found.length;
  const root = parse(text, problems);
  if (root === undefined) return { file: filled({}), whole: false };
  reportErrors(configFileSchema, root, [], problems);
  const whole = problems.found.length === before;
  return { file: filled(whole ? (root as FileShape) : pruned(root)), whole };
}

const faultsMax = 10;

/** Undefined: not YAML. */
function parse(text: string, problems: Problems): unknown {
  const lines = new LineCounter();
  const placeOf = (offset: number): Place => {
    const { line, col } = lines.linePos(offset);
    return { line: Math.max(1, line), column: Math.max(1, col) };
  };
  try {
    const document = parseDocument(text, {
      lineCounter: lines,
      prettyErrors: false,
      uniqueKeys: false,
      logLevel: "error",
    });
    // After a first mistake the parser sees many; the first few tell what there is to mend.
    const faults = [...document.errors, ...document.warnings].slice(0, faultsMax);
    for (const fault of faults) {
      // What follows a colon may quote the text, which may hold a secret.
      problems.atPlace(placeOf(fault.pos[0]), `not valid YAML: ${fault.message.replace(/: ".*$/s, "")}`);
    }
    if (faults.length > 0) return undefined;
    if (!walk(document.contents, [], problems, placeOf)) return undefined;
    return document.toJS({ maxAliasCount: 100 }) ?? {};
  } catch (error) {
    // The parser throws for what it cannot hold: nesting without end, aliases that multiply.
    if (!(error instanceof RangeError || error instanceof ReferenceError)) throw error;
    problems.atPlace({ line: 1, column: 1 }, `not valid YAML: ${error.message}`);
    return undefined;
  }
}

type FileShape = Static<typeof configFileSchema>;

/** Takes out the properties that are wrong, and with a list's member the whole list: the others keep their numbers. */
function pruned(root: unknown): FileShape {
  const copy: unknown = structuredClone(root);
  for (let round = 0; round < 8; round += 1) {
    const errors = [...Value.Errors(configFileSchema, copy)];
    if (errors.length === 0) return copy as FileShape;
    for (const error of errors) {
      const segments = segmentsOf(copy, error.path);
      const missing = error.type === ValueErrorType.ObjectRequiredProperty;
      takeOut(copy, missing ? segments.slice(0, -1) : segments);
    }
  }
  return {};
}

function takeOut(root: unknown, segments: Segments): void {
  const property = segments.findLastIndex((segment) => typeof segment === "string");
  let holder: unknown = root;
  for (const segment of segments.slice(0, Math.max(0, property))) {
    if (typeof holder !== "object" || holder === null) return;
    holder = (holder as Record<string | number, unknown>)[segment];
  }
  if (property >= 0 && typeof holder === "object" && holder !== null) {
    Reflect.deleteProperty(holder, segments[property] ?? "");
  }
}

/** Fills the defaults; the cast is what the schema promises (see config-schema.ts). */
const filled = (file: FileShape): FilledConfigFile =>
  Value.Default(configFileSchema, Value.Clone(file)) as FilledConfigFile;
