/** The section `artifacts` of the configuration file. app/config-schema.ts takes it in; app/config-artifacts.ts compiles it. */
import { Type } from "@sinclair/typebox";
import { limits } from "../domain/limits.ts";
import { transcriptPolicies } from "../domain/transcript.ts";
import { integer, nullable, oneOf, optional, outer, section, text, variable } from "./config-schema-kinds.ts";

const s3 = Type.Object(
  {
    endpoint: text("https://HOST or http://HOST:PORT, without the bucket."),
    bucket: Type.String({
      pattern: "^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$",
      "x-expected": "3 to 63 of a-z, 0-9, . and - (a letter or digit first and last)",
      description: "It is there already.",
    }),
    region: optional(
      Type.String({
        pattern: "^[A-Za-z0-9][A-Za-z0-9-]{0,63}$",
        default: "us-east-1",
        "x-expected": "a region's name, as in eu-central-1",
        description: "What requests are signed for.",
      }),
    ),
    prefix: optional(
      Type.String({
        pattern: "^(?:[A-Za-z0-9][A-Za-z0-9._-]{0,63}/){0,8}$",
        default: "",
        "x-expected": "nothing, or names with a slash behind each, as in orchd/",
        description: "Before the name of every object.",
      }),
    ),
    access_key_id_file: nullable(text("Path"), "A file that holds the access key's id; read at start."),
    access_key_id_env: nullable(variable(), "The variable that holds it; one of the two."),
    secret_access_key_file: nullable(text("Path"), "A file that holds the secret; read at start."),
    secret_access_key_env: nullable(variable(), "The variable that holds it; one of the two."),
  },
  { additionalProperties: false, description: "A bucket of an S3-compatible service." },
);

export const artifactsSchema = section(
  {
    root: nullable(text("Path"), "Where they lie; null: artifacts in the state folder, or s3."),
    max_bytes: integer(
      outer.artifactRootBytesMin,
      Number.MAX_SAFE_INTEGER,
      limits.artifactRootBytesDefault,
      "All of them together; the oldest that nothing refers to go first.",
    ),
    max_age_days: nullable(
      Type.Integer({ minimum: 1, maximum: outer.artifactAgeDaysMax }),
      "What nothing refers to goes after so many days; null: never for its age.",
    ),
    transcripts: optional(
      oneOf(transcriptPolicies, {
        default: "full",
        description:
          "What each finished task leaves as a trace artifact. redacted: digests instead of what was asked and answered.",
      }),
    ),
    s3: nullable(s3, "In a bucket instead of a folder; null: in root."),
  },
  "Content-addressed documents and attachments.",
);
