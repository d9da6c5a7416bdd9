/**
 * Building blocks of the wire models: strict objects, closed string sets, nullable values, identifiers.
 * The other files of this folder are made of these; nothing else imports them.
 *
 * Always: plain TypeBox types without $id (and one kind of our own, QueryInteger), so that Elysia compiles them
 * natively and the JSON they print is the JSON Schema of the contract. A closed set is a union of literals and not Elysia's
 * `UnionEnum`: that one carries a default which Elysia would write into bodies behind the client's back.
 */
import {
  Kind,
  type StringOptions,
  type TObject,
  type TProperties,
  type TSchema,
  type TUnion,
  type TUnsafe,
  Type,
  TypeRegistry,
} from "@sinclair/typebox";
import { poolIdPattern, uuidPattern } from "../../domain/ids.ts";
import { limits } from "../../domain/limits.ts";

/** An object that refuses fields it does not know. `oneOf` is printed, not checked: TypeBox checks no keywords. */
export const strict = <P extends TProperties>(
  properties: P,
  options: { description?: string; oneOf?: readonly { readonly required: readonly string[] }[] } = {},
): TObject<P> => Type.Object(properties, { ...options, additionalProperties: false });

/** One of a closed set of strings. */
export const oneOf = <const V extends string>(
  values: readonly V[],
  options: { description?: string } = {},
): TUnsafe<V> =>
  Type.Unsafe<V>(
    Type.Union(
      values.map((value) => Type.Literal(value)),
      options,
    ),
  );

export const nullable = <S extends TSchema>(
  schema: S,
  description?: string,
): TUnion<[S, ReturnType<typeof Type.Null>]> =>
  Type.Union([schema, Type.Null()], description === undefined ? {} : { description });

export const uuid = (description: string) => Type.String({ pattern: uuidPattern, description });
export const poolId = (description: string) => Type.String({ pattern: poolIdPattern, description });
export const text = (charsMax: number, description: string, options: StringOptions = {}) =>
  Type.String({ ...options, maxLength: charsMax, description });

/** A count or a size: never negative. */
export const count = (description: string) => Type.Integer({ minimum: 0, description });
export const milliseconds = (description: string) => Type.Number({ minimum: 0, description });
export const epochMs = (description: string) =>
  Type.Number({ minimum: 0, description: `${description} (ms since 1970-01-01T00:00:00Z)` });
export const probability = () => Type.Number({ minimum: 0, maximum: 1 });

/**
 * An integer in a query string: its text is checked, bounds included, and handlers get the number.
 *
 * A kind of its own, because Elysia's number types refuse out-of-bounds text while decoding, and what a decoder
 * throws Elysia tells by the name of its class: minified, the refusal is swallowed and the text goes through.
 * This decoder never throws. Printed as JSON Schema it is an integer.
 */
export const queryInteger = (minimum: number, maximum: number, description: string) =>
  Type.Transform(
    Type.Unsafe<number>({ [Kind]: queryIntegerKind, type: "integer", minimum, maximum, description }),
  )
    // Typed as the number that handlers get; before this line it is text.
    .Decode((text) => Number(text))
    .Encode((number) => number);

const queryIntegerKind = "QueryInteger";
TypeRegistry.Set<{ minimum: number; maximum: number }>(queryIntegerKind, ({ minimum, maximum }, text) => {
  if (typeof text !== "string" || !/^\d{1,16}$/.test(text)) return false;
  return Number(text) >= minimum && Number(text) <= maximum;
});

/** Small string labels that travel with a task: names are limited so that they are safe in logs and URLs. */
export const metadata = (description: string) =>
  Type.Record(
    Type.String({ pattern: "^[A-Za-z0-9._:/-]{1,64}$" }),
    Type.String({ maxLength: limits.metadataValueCharsMax }),
    {
      maxProperties: limits.metadataKeysMax,
      additionalProperties: false,
      description,
    },
  );
