/**
 * Reads contracts/openapi/*.yaml for the contract tests: operations with every $ref resolved, and one normal
 * form for schemas, so that the contract's and TypeBox's ways of saying the same compare equal.
 */
import { parse } from "yaml";

export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };
export type JsonObject = { [name: string]: Json };

export const contractNames = ["data", "control"] as const;
export type ContractName = (typeof contractNames)[number];

const read = new Map<ContractName, Promise<JsonObject>>();

export function readContract(name: ContractName): Promise<JsonObject> {
  const document = read.get(name) ?? parseFile(name);
  read.set(name, document);
  return document;
}

async function parseFile(name: ContractName): Promise<JsonObject> {
  const file = Bun.file(new URL(`../../contracts/openapi/${name}.yaml`, import.meta.url));
  return parse(await file.text(), { uniqueKeys: true }) as JsonObject;
}

export const isObject = (node: Json | undefined): node is JsonObject =>
  typeof node === "object" && node !== null && !Array.isArray(node);

export const objectAt = (node: Json | undefined, ...path: readonly string[]): JsonObject => {
  let at: Json | undefined = node;
  for (const name of path) at = isObject(at) ? at[name] : undefined;
  return isObject(at) ? at : {};
};

/** Follows `$ref` of the same document everywhere. The contracts have no cycles. */
export function resolveRefs(node: Json, document: JsonObject): Json {
  if (Array.isArray(node)) return node.map((item) => resolveRefs(item, document));
  if (!isObject(node)) return node;
  if (typeof node.$ref === "string") {
    let target: Json | undefined = document;
    for (const name of node.$ref.replace(/^#\//, "").split("/"))
      target = isObject(target) ? target[name] : undefined;
    if (target === undefined) throw new Error(`${node.$ref} points nowhere`);
    return resolveRefs(target, document);
  }
  return Object.fromEntries(
    Object.entries(node).map(([name, value]) => [name, resolveRefs(value, document)]),
  );
}

export interface Operation {
  readonly method: string;
  /** As the contract writes it: /v1/tasks/{id}. */
  readonly path: string;
  readonly operation: JsonObject;
  /** Those of the path and of the operation. */
  readonly parameters: readonly JsonObject[];
}

const methods = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];

export function operationsOf(document: JsonObject): Operation[] {
  const paths = objectAt(resolveRefs(document.paths ?? {}, document));
  return Object.entries(paths).flatMap(([path, item]) => {
    if (!isObject(item)) return [];
    return methods.flatMap((method) => {
      const operation = item[method];
      if (!isObject(operation)) return [];
      const shared = Array.isArray(item.parameters) ? item.parameters : [];
      const own = Array.isArray(operation.parameters) ? operation.parameters : [];
      return [
        { method: method.toUpperCase(), path, operation, parameters: [...shared, ...own].filter(isObject) },
      ];
    });
  });
}

export async function allOperations(): Promise<Operation[]> {
  return (await Promise.all(contractNames.map(readContract))).flatMap(operationsOf);
}

export const contractPath = (elysiaPath: string): string => elysiaPath.replace(/:([^/]+)/g, "{$1}");

/** What a schema demands, without words: two schemas that accept the same look the same after this. */
export function normalise(node: Json): Json {
  if (Array.isArray(node)) return node.map(normalise);
  if (!isObject(node)) return node;
  const out: JsonObject = {};
  for (const [name, value] of Object.entries(node)) {
    if (
      ["description", "title", "example", "examples", "$id", "default"].includes(name) &&
      !isSchemaMap(value)
    )
      continue;
    out[name] =
      (name === "properties" || name === "patternProperties") && isObject(value)
        ? Object.fromEntries(Object.entries(value).map(([key, schema]) => [key, normalise(schema)]))
        : name === "required" && Array.isArray(value)
          ? [...value].map(String).sort()
          : normalise(value);
  }
  return canonical(out);
}

/** A property may be called `description`: then its value is a schema and stays. */
const isSchemaMap = (value: Json): boolean => isObject(value) && ("type" in value || "anyOf" in value);

function canonical(schema: JsonObject): JsonObject {
  const { anyOf, ...rest } = schema;
  if (Array.isArray(anyOf)) {
    const members = anyOf.filter(isObject);
    // The members were made canonical first: a constant is an enum of one.
    if (members.every((member) => member.type === "string" && Array.isArray(member.enum))) {
      const values = members.flatMap((member) => (Array.isArray(member.enum) ? member.enum : []));
      return { ...rest, type: "string", enum: values.map(String).sort() };
    }
    const inner = members[0];
    const nullable = members.length === 2 && members[1]?.type === "null";
    if (
      nullable &&
      inner !== undefined &&
      typeof inner.type === "string" &&
      inner.type !== "object" &&
      inner.type !== "array"
    ) {
      const closed = Array.isArray(inner.enum) ? { enum: [...inner.enum, null] } : {};
      return canonical({ ...rest, ...inner, ...closed, type: [inner.type, "null"] });
    }
  }
  if (typeof schema.const === "string") {
    const { const: only, ...others } = schema;
    return { ...others, enum: [only ?? null] };
  }
  if (Array.isArray(schema.enum))
    return { ...schema, enum: [...schema.enum].map((value) => String(value)).sort() };
  return schema;
}
