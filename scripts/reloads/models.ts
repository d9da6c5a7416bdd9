/**
 * The model files of the run of reloads, made in one folder: the demo model, a copy of it under another name, another
 * model that says other things and has less context, and files that are none. Called by run.ts.
 *
 * Always holds: `demo` and `copy` have the same bytes; `other` answers the same request with another text.
 */
import { createHash } from "node:crypto";
import { copyFileSync, readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { testModel } from "../../test/support/engine.ts";
import { buildModel } from "../make-demo-model.ts";
import { type Tensor, writeGguf } from "../model/gguf-writer.ts";

export const modelNames = ["demo", "copy", "other"] as const;
export type ModelName = (typeof modelNames)[number];

export interface Models {
  /** As the API takes it. */
  readonly refOf: (name: ModelName) => string;
  readonly pathOf: (name: ModelName) => string;
  readonly digestOf: (name: ModelName) => string;
  /** A whole header, and the file ends in the middle of the tensors. */
  readonly truncatedRef: string;
  /** Begins with other letters than GGUF. */
  readonly foreignRef: string;
  readonly missingRef: string;
}

/** Two models of which none continues the other's answers. */
export const areSame = (a: ModelName, b: ModelName): boolean => (a === "other") === (b === "other");

/** Tokens; the pool asks for more, so that requests fit the one model and not the other. */
export const otherContext = 1024;
/** The last columns of the output head: what a word's score takes from the clocks (scripts/model/demo-weights.ts). */
const clockColumns = 8;

export async function makeModels(folder: string): Promise<Models> {
  const pathOf = (name: string) => join(folder, `${name}.gguf`);
  const demo = testModel("demo");
  copyFileSync(demo, pathOf("demo"));
  copyFileSync(demo, pathOf("copy"));
  copyFileSync(demo, pathOf("truncated"));
  truncateSync(pathOf("truncated"), Math.floor(statSync(demo).size / 2));
  writeFileSync(pathOf("foreign"), "hello, this is no model at all\n".repeat(100));
  await writeGguf(pathOf("other"), otherModel());
  const digests = new Map(
    modelNames.map((name) => [
      name,
      createHash("sha256")
        .update(readFileSync(pathOf(name)))
        .digest("hex"),
    ]),
  );
  const refOf = (name: string) => `file:${pathOf(name)}`;
  return {
    refOf,
    pathOf,
    digestOf: (name) => digests.get(name) ?? "",
    truncatedRef: refOf("truncated"),
    foreignRef: refOf("foreign"),
    missingRef: refOf("missing"),
  };
}

/** The demo model that hears its clocks the wrong way round: the same words in another order. */
function otherModel(): ReturnType<typeof buildModel> {
  const { metadata, tensors } = buildModel("demo");
  const more = new Map(metadata);
  more.set("general.name", { kind: "string", value: "orchestratord demo, another" });
  more.set("llama.context_length", { kind: "uint32", value: otherContext });
  return {
    metadata: more,
    tensors: tensors.map((one) => (one.name === "output.weight" ? turned(one) : one)),
  };
}

function turned(tensor: Tensor): Tensor {
  const [width] = tensor.shape;
  if (tensor.data === null || width === undefined) throw new Error("the demo model has an output head");
  const data = tensor.data.map((value, at) => (at % width >= width - clockColumns ? -value : value));
  return { ...tensor, data };
}
