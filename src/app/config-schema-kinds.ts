/**
 * The kinds of keys that the configuration file is made of: small builders over TypeBox that keep bounds,
 * default and explanation together. Called by app/config-schema.ts and config-schema-pools.ts only.
 *
 * Always holds: a builder for an optional key carries the key's default. Two annotations go beyond JSON Schema:
 * `x-expected` says in words what a pattern means, and `x-later` marks a key (or some values of it) whose
 * feature this version does not have.
 */
import { type SchemaOptions, type TLiteral, type TSchema, Type } from "@sinclair/typebox";
import { limits } from "../domain/limits.ts";

/** Timers and time limits end here: a week, well inside what a timer can hold. */
export const msMax = limits.deadlineMsMax;
/** Outer bounds that only the file has: generous, there to catch a slip of the keyboard. */
export const outer = {
  artifactRootBytesMin: 1024 * 1024,
  artifactAgeDaysMax: 36_500,
  ctxMax: 16 * 1024 * 1024,
  rateMax: 1_000_000,
  streamsPerKeyMax: 1_000_000,
  attemptsMax: 100,
  breakerFailuresMax: 1000,
  keysMax: 1024,
  listMax: 256,
  turnsMax: 1_000_000,
  /** For a thousand tokens: what the longest task costs stays an exact number of millionths. */
  priceMax: 100_000,
  textCharsMax: 4096,
  /** A quiet stream must speak before the server's idle timeout closes it. */
  heartbeatMsMax: (limits.idleTimeoutSeconds * 1000) / 2,
} as const;

export const optional = <T extends TSchema>(schema: T) => Type.Optional(schema);
export const integer = (minimum: number, maximum: number, initial: number, description: string) =>
  optional(Type.Integer({ minimum, maximum, default: initial, description }));
export const milliseconds = (
  minimum: number,
  initial: number,
  description: string,
  maximum: number = msMax,
) => integer(minimum, maximum, initial, description);
export const nullable = <T extends TSchema>(schema: T, description: string) =>
  optional(Type.Union([schema, Type.Null()], { default: null, description }));
export const oneOf = <const T extends readonly string[]>(values: T, options: SchemaOptions) =>
  Type.Union(
    values.map((value): TLiteral<T[number]> => Type.Literal(value)),
    options,
  );
export const text = (description: string) =>
  Type.String({ minLength: 1, maxLength: outer.textCharsMax, description, "x-expected": "a non-empty text" });
export const variable = () =>
  Type.String({
    pattern: "^[A-Z_][A-Z0-9_]{0,127}$",
    "x-expected": "the name of an environment variable, in capitals",
  });
export const section = <T extends Record<string, TSchema>>(properties: T, description: string) =>
  optional(Type.Object(properties, { additionalProperties: false, default: {}, description }));

/** A key whose feature comes later: this one value, or absent. */
export const later = <T extends string | number | boolean>(value: T, others: readonly string[] = []) =>
  optional(
    Type.Literal(value, {
      default: value,
      "x-later": [...others],
      description: "Only this value works in this version.",
    }),
  );
export const laterNull = () =>
  optional(
    Type.Null({
      default: null,
      "x-later": [],
      description: "Not supported by this version: null or absent.",
    }),
  );
