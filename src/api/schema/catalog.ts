/** The wire models of /v1/catalog/models (contracts/openapi/control.yaml says the same). Used by api/catalog.ts. */
import { type Static, Type } from "@sinclair/typebox";
import { digestPattern } from "../../domain/artifact.ts";
import { catalogStates, referenceKinds, verificationReasons } from "../../domain/catalog.ts";
import { limits } from "../../domain/limits.ts";
import { catalogIdPattern, modelRefCharsMax } from "../../domain/model-ref.ts";
import { count, epochMs, nullable, oneOf, queryInteger, strict, text } from "./wire.ts";

const digest = (description: string) => Type.String({ pattern: digestPattern, description });
const id = (description: string) => Type.String({ pattern: catalogIdPattern, description });
const tag = (description: string) =>
  Type.String({ pattern: `^[A-Za-z0-9._:/-]{1,${limits.artifactTagCharsMax}}$`, description });
const tags = () =>
  Type.Array(tag("A label to find it by."), { maxItems: limits.artifactTagsMax, uniqueItems: true });
const references = () =>
  Type.Array(
    strict(
      {
        kind: oneOf(referenceKinds, { description: "What is found there." }),
        uri: Type.String({
          pattern: `^[\\x21-\\x7e]{1,${limits.catalogUriCharsMax}}$`,
          description: "Where it is found.",
        }),
      },
      { description: "Where more is said of the model; kept and shown, not read." },
    ),
    { maxItems: limits.catalogReferencesMax },
  );
const state = () => oneOf(catalogStates, { description: "Retired: tasks for it are refused." });
const bytes = (description: string) =>
  Type.Integer({ minimum: 1, maximum: limits.modelBytesMax, description });

export const CatalogIdParams = strict({ id: id("The entry's id.") });

export const CatalogRequest = strict(
  {
    id: id("What it is called: lower-case letters, digits and . _ - ; also a model_ref of tasks."),
    model_ref: text(
      modelRefCharsMax,
      "A file within models.dir and models.roots (file:, or a path), hf:ORG/REPO/FILE.gguf or https://HOST/PATH/FILE.gguf.",
      { minLength: 1 },
    ),
    digest: Type.Optional(nullable(digest("SHA-256 that the file must have."))),
    size_bytes: Type.Optional(nullable(bytes("Bytes that the file must have."))),
    tags: Type.Optional(tags()),
    references: Type.Optional(references()),
    fetch: Type.Optional(
      Type.Boolean({ description: "Fetch the file now if it is not there; false where absent." }),
    ),
  },
  { description: "A model as the catalog shall know it." },
);

export const CatalogStateRequest = strict(
  {
    state: state(),
    deadline_ms: Type.Optional(
      Type.Integer({
        minimum: 0,
        maximum: limits.deadlineMsMax,
        description: "Milliseconds from now until it is Retired; 0 where absent.",
      }),
    ),
  },
  { description: "Whether the model may be used." },
);

const Job = strict(
  {
    kind: oneOf(["fetch", "verify"], { description: "What is done." }),
    state: oneOf(["waiting", "running"], { description: "A few run at once, the others wait." }),
    phase: oneOf(["asking", "receiving", "checking"], {
      description: "Asking the source, receiving, or comparing what is there.",
    }),
    bytes_done: count("Bytes of the file that are there; while checking, that were read."),
    bytes_total: nullable(count("Of the whole file; null: not known yet.")),
    bytes_received: count("Bytes that came in this run."),
    interruptions: count("Answers that broke off or were of no use."),
    resumable: nullable(
      Type.Boolean({
        description: "Whether an interruption costs only what was not written yet; null: not known yet.",
      }),
    ),
    started_ms: nullable(epochMs("When it began; null: it waits.")),
  },
  { description: "What runs for the file." },
);

const Verification = strict(
  {
    result: oneOf(["done", "failed"], { description: "Whether the file is what it should be." }),
    reason: oneOf(
      verificationReasons.filter((reason) => reason !== "canceled"),
      {
        description:
          "given: it has the entry's digest. source: the one that its source told. measured: nobody named one. Else what is wrong: digest, size, header, missing, unreadable.",
      },
    ),
    digest: nullable(digest("SHA-256 that the file has; null: it was not read to its end.")),
    at_ms: epochMs("When."),
  },
  { description: "The last comparison of the file with its entry." },
);

export const CatalogModel = strict(
  {
    id: id("The entry's id."),
    model_ref: Type.String({ description: "In the one spelling that references are compared by." }),
    digest: nullable(digest("SHA-256 that the file must have; null: nobody said.")),
    size_bytes: nullable(count("Bytes that the file must have; null: nobody said.")),
    tags: tags(),
    references: references(),
    state: state(),
    retired_from_ms: nullable(epochMs("From when it is Retired; null: it is not to be.")),
    source: nullable(Type.String(), "Where it is fetched from; null: it is a file of this machine."),
    source_digest: nullable(digest("SHA-256 that the source told when it was fetched.")),
    path: nullable(
      Type.String(),
      "Where the file lies, or will; null: outside of models.dir and models.roots as they are now.",
    ),
    present: Type.Boolean({ description: "Whether the file is there." }),
    file_bytes: nullable(count("Bytes of the file that is there.")),
    trusted: Type.Boolean({ description: "Whether models.trust lets it be loaded." }),
    trust_problem: nullable(Type.String(), "Why not; null: it does."),
    verification: nullable(Verification, "Null: there was none."),
    job: nullable(Job, "Null: nothing waits or runs."),
    fetch_problem: nullable(
      Type.String(),
      "Why the last fetch brought nothing; null: it did, or there was none.",
    ),
    created_ms: epochMs("When the entry was made."),
    updated_ms: epochMs("When its state was changed last, else when it was made."),
  },
  { description: "An entry as it stands now." },
);
export type CatalogModelBody = Static<typeof CatalogModel>;

export const CatalogList = strict(
  {
    models: Type.Array(CatalogModel),
    next_cursor: nullable(Type.String(), "Where to go on; null: that was all."),
  },
  { description: "A page, by id." },
);

export const CatalogListQuery = strict({
  tag: Type.Optional(tag("Only those with this tag.")),
  state: Type.Optional(state()),
  limit: Type.Optional(queryInteger(1, limits.listPageMax, "How many at most; 50 where absent.")),
  cursor: Type.Optional(text(64, "next_cursor of the page before.")),
});
