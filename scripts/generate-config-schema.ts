// Writes contracts/schemas/config.schema.json from the schema that the daemon itself validates with
// (src/app/config-schema.ts). Run by hand after a change: `bun scripts/generate-config-schema.ts`;
// test/contract/config-schema.test.ts fails while the two differ.

import { join } from "node:path";
import { configFileSchema } from "../src/app/config-schema.ts";

export const schemaPath = join(import.meta.dir, "../contracts/schemas/config.schema.json");

/** The file's text: JSON Schema, keys in the order of the source, laid out as the formatter wants it. */
export function schemaText(): string {
  const schema = { $schema: "http://json-schema.org/draft-07/schema#", ...configFileSchema };
  const laidOut = JSON.stringify(schema, null, 2);
  return `${laidOut.replace(/\[\n\s+("[^"\n]*"(?:,\n\s+"[^"\n]*")*)\n\s+\]/g, (_, names: string) => `[${names.replace(/,\n\s+/g, ", ")}]`)}\n`;
}

if (import.meta.main) await Bun.write(schemaPath, schemaText());
