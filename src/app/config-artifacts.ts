/**
 * The section `artifacts`, compiled: where artifacts lie, and with S3 the credentials that the file only refers to.
 * Called by app/config.ts; app/bootstrap.ts opens the store.
 *
 * Always holds: credentials are those of config-credentials.ts.
 */
import { join } from "node:path";
import type { TranscriptPolicy } from "../domain/transcript.ts";
import { type Credential, type CredentialDeps, compileCredential } from "./config-credentials.ts";
import type { FilledConfigFile } from "./config-schema.ts";

export interface S3Spec {
  /** http://host:port or https://host, without a slash at the end. */
  readonly endpoint: string;
  readonly bucket: string;
  readonly region: string;
  /** Empty, or ends with a slash. */
  readonly prefix: string;
  readonly accessKeyId: Credential;
  readonly secretAccessKey: Credential;
}

export interface ArtifactsSpec {
  /** Absolute path; not used where `s3` is set. */
  readonly root: string;
  /** Null: they lie in `root`. */
  readonly s3: S3Spec | null;
  readonly documentBytesMax: number;
  readonly bytesMax: number;
  /** Null: none goes for its age. */
  readonly maxAgeMs: number | null;
  /** What finished tasks leave. */
  readonly transcripts: TranscriptPolicy;
}

const dayMs = 24 * 3600 * 1000;

type FilledS3 = NonNullable<FilledConfigFile["artifacts"]["s3"]>;

export interface CompileArtifactsDeps extends CredentialDeps {
  readonly stateDir: string;
}

export function compileArtifacts(file: FilledConfigFile, deps: CompileArtifactsDeps): ArtifactsSpec {
  const { root, s3, max_bytes, max_age_days, transcripts } = file.artifacts;
  if (root !== null && s3 !== null)
    deps.problems.atPath(["artifacts", "s3"], "found root and s3, expected one of them", "key");
  return {
    root: root === null ? join(deps.stateDir, "artifacts") : deps.absolute(root),
    s3: s3 === null ? null : compileS3(s3, deps),
    documentBytesMax: file.limits.artifact_bytes,
    bytesMax: max_bytes,
    maxAgeMs: max_age_days === null ? null : max_age_days * dayMs,
    transcripts,
  };
}

/** The variables that the file refers to: they are known, whatever they are called. */
export function namedVariables(file: FilledConfigFile): readonly string[] {
  const { s3 } = file.artifacts;
  const keys = file.pools.map((pool) => pool.api_key_env);
  return [s3?.access_key_id_env, s3?.secret_access_key_env, ...keys].filter(
    (name) => typeof name === "string",
  );
}

function compileS3(of: FilledS3, deps: CompileArtifactsDeps): S3Spec | null {
  const endpoint = compileEndpoint(of.endpoint, deps);
  const credential = (what: "access_key_id" | "secret_access_key"): Credential | null =>
    compileCredential(
      ["artifacts", "s3"],
      what,
      { file: of[`${what}_file`], variable: of[`${what}_env`] },
      deps,
    );
  const accessKeyId = credential("access_key_id");
  const secretAccessKey = credential("secret_access_key");
  if (endpoint === null || accessKeyId === null || secretAccessKey === null) return null;
  return { endpoint, bucket: of.bucket, region: of.region, prefix: of.prefix, accessKeyId, secretAccessKey };
}

function compileEndpoint(text: string, { problems, warnings }: CompileArtifactsDeps): string | null {
  const path = ["artifacts", "s3", "endpoint"];
  const url = URL.canParse(text) ? new URL(text) : null;
  // Not quoted: somebody may have put the credentials into it.
  if (url !== null && (url.username !== "" || url.password !== "")) {
    problems.atPath(path, "found credentials in the address, expected them in files or variables");
    return null;
  }
  const rest = url === null ? "" : `${url.pathname.slice(1)}${url.search}${url.hash}`;
  if (url === null || !["http:", "https:"].includes(url.protocol) || rest !== "") {
    const expected = "https://HOST or http://HOST:PORT, the bucket apart";
    problems.atPath(path, `found ${JSON.stringify(text)}, expected ${expected}`);
    return null;
  }
  const isHere = url.hostname === "localhost" || url.hostname === "[::1]" || url.hostname.startsWith("127.");
  if (url.protocol === "http:" && !isHere)
    warnings.push(`artifacts.s3.endpoint ${url.origin} is not encrypted: artifacts can be read on the way`);
  return url.origin;
}
