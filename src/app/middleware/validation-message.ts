/**
 * A schema's refusal in a sentence: which field, what was expected, and the nearest known name for one that
 * does not exist. Called by errors.ts.
 *
 * Never echoes a value (it may be a prompt or a secret), and of an unknown field only the start of its name.
 */
import { closest, distance } from "fastest-levenshtein";
import { poolIdPattern, uuidPattern } from "../../domain/ids.ts";

/** As much of a TypeBox schema as is read here. */
interface Schema {
  readonly type?: string;
  readonly const?: unknown;
  readonly anyOf?: readonly Schema[];
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly patternProperties?: Readonly<Record<string, Schema>>;
  readonly pattern?: string;
  readonly minLength?: number;
  readonly maxLength?: number;
  readonly minimum?: number;
  readonly maximum?: number;
  readonly minItems?: number;
  readonly maxItems?: number;
  readonly maxProperties?: number;
}

/** A TypeBox value error, as Elysia hands it on. */
export interface SchemaRefusal {
  /** "body", "query", "params" or "headers". */
  readonly in: string;
  /** JSON pointer; "" for the whole. */
  readonly path: string;
  /** TypeBox's ValueErrorType. */
  readonly kind: number;
  readonly schema: unknown;
  readonly value: unknown;
}

export interface Explanation {
  readonly message: string;
  readonly details: Readonly<Record<string, unknown>>;
}

// TypeBox's numbers (its ValueErrorType): the enum itself would pull the whole error module into every caller.
const additionalProperty = 42;
const requiredProperty = 45;
const nameCharsMax = 64;

export function explain(refusal: SchemaRefusal): Explanation {
  const schema = refusal.schema as Schema;
  const names = refusal.path.split("/").slice(1).map(nameOf);
  const field = names.join(".");
  const where = { in: refusal.in, ...(field === "" ? {} : { field }) };
  if (refusal.kind === additionalProperty) return explainUnknown(refusal.in, names, schema, where);

  const expected = expectation(schema);
  const details = { ...where, expected };
  const subject = subjectOf(refusal.in, field);
  if (field === "") {
    const missing = refusal.value === undefined || refusal.value === null;
    return {
      message: missing ? `${subject} is missing: it must be ${expected}.` : `${subject} must be ${expected}.`,
      details,
    };
  }
  if (refusal.kind === requiredProperty) {
    return { message: `${subject} is missing: it must be ${expected}.`, details };
  }
  const choices = literals(schema);
  // Of a single one the sentence has said already what it must be.
  const nearest = choices.length > 1 ? nearestName(refusal.value, choices) : null;
  return {
    message: `${subject} must be ${expected}.${didYouMean(nearest)}`,
    details: nearest === null ? details : { ...details, nearest },
  };
}

function explainUnknown(
  place: string,
  names: readonly string[],
  parent: Schema,
  where: Readonly<Record<string, unknown>>,
): Explanation {
  const name = names.at(-1) ?? "";
  const pattern = Object.keys(parent.patternProperties ?? {})[0];
  if (pattern !== undefined) {
    const owner = names.slice(0, -1).join(".");
    return {
      message: `A name in ${owner} must match ${pattern}.`,
      details: { ...where, expected: `a name that matches ${pattern}` },
    };
  }
  const known = Object.keys(parent.properties ?? {});
  const nearest = nearestName(name, known);
  const what = place === "query" ? "query parameter" : "field";
  const hint = nearest === null ? ` Known here: ${known.join(", ")}.` : didYouMean(nearest);
  return {
    message: `There is no ${what} "${names.join(".")}".${hint}`,
    details: { ...where, expected: "nothing", ...(nearest === null ? { known } : { nearest }) },
  };
}

const didYouMean = (nearest: string | null): string =>
  nearest === null ? "" : ` Did you mean "${nearest}"?`;

function subjectOf(place: string, field: string): string {
  if (field === "") return place === "body" ? "The body" : `The ${place}`;
  switch (place) {
    case "query":
      return `The query parameter ${field}`;
    case "params":
      return `The path parameter ${field}`;
    case "headers":
      return `The header ${field}`;
    default:
      return field;
  }
}

function expectation(schema: Schema): string {
  const closed = literals(schema);
  if (closed.length > 0) return closed.length === 1 ? `"${closed[0]}"` : `one of ${closed.join(", ")}`;
  switch (schema.type) {
    case "string":
      return expectedText(schema);
    case "integer":
      return `an integer${range(schema.minimum, schema.maximum, "")}`;
    case "number":
      return `a number${range(schema.minimum, schema.maximum, "")}`;
    case "boolean":
      return "true or false";
    case "array":
      return `an array${range(schema.minItems, schema.maxItems, " items")}`;
    case "object":
      return schema.maxProperties === undefined
        ? "a JSON object"
        : `a JSON object of at most ${schema.maxProperties} entries`;
    default:
      return "something else";
  }
}

function expectedText(schema: Schema): string {
  if (schema.pattern === uuidPattern) return "a UUID";
  if (schema.pattern === poolIdPattern) return "a pool id (1 to 64 of a-z 0-9 . _ -)";
  if (schema.pattern !== undefined) return `text that matches ${schema.pattern}`;
  return `a string${range(schema.minLength, schema.maxLength, " characters")}`;
}

function range(least: number | undefined, most: number | undefined, unit: string): string {
  if (least !== undefined && most !== undefined)
    return unit === "" ? ` from ${least} to ${most}` : ` of ${least} to ${most}${unit}`;
  if (least !== undefined) return ` of at least ${least}${unit}`;
  return most === undefined ? "" : ` of at most ${most}${unit}`;
}

const literals = (schema: Schema): string[] =>
  (schema.anyOf ?? [schema]).flatMap((member) => (typeof member.const === "string" ? [member.const] : []));

/** The known name that `given` is probably a slip of the pen for. */
function nearestName(given: unknown, known: readonly string[]): string | null {
  if (typeof given !== "string" || given === "" || given.length > nameCharsMax || known.length === 0)
    return null;
  const nearest = closest(given, known);
  return distance(given, nearest) <= Math.max(1, Math.ceil(given.length / 3)) ? nearest : null;
}

/** One step of a JSON pointer as a name; of a long one only the start. */
function nameOf(step: string): string {
  const name = step.replaceAll("~1", "/").replaceAll("~0", "~");
  return name.length <= nameCharsMax ? name : `${name.slice(0, nameCharsMax)}…`;
}
