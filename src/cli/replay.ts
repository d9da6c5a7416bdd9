/**
 * `replay <artifact>`: runs a finished task again as its transcript tells it, on a running daemon, and says whether it
 * answers the same bytes. Called by main.ts.
 *
 * Always holds: nothing is changed but for one more task, which carries the artifact's id in its metadata. Exit code: 0 equal, 1
 * different, 2 it could not be told.
 */
import { readFileSync } from "node:fs";
import type { ConfigFlags } from "../app/config.ts";
import type { Composition } from "../app/daemon.ts";
import { systemCode } from "../app/start-error.ts";
import { type Comparison, compareRuns, isPartial } from "../domain/replay-comparison.ts";
import { type ReadTranscript, readTranscript, requestAgain } from "../domain/transcript-reading.ts";
import { type DaemonFlags, onDaemon } from "./daemon-address.ts";
import { CommandError, type DaemonClient } from "./daemon-client.ts";
import { print } from "./print.ts";

export interface ReplayFlags extends DaemonFlags {
  /** Id of an artifact, or the path of a file that holds one. */
  readonly artifact: string;
  readonly json?: boolean | undefined;
}

export async function replay(
  flags: ReplayFlags,
  configFlags: ConfigFlags,
  composition: Pick<Composition, "readModelKind">,
): Promise<number> {
  return onDaemon(flags, configFlags, composition, (client) => run(flags, client));
}

async function run({ artifact, json = false }: ReplayFlags, client: DaemonClient): Promise<number> {
  const { id, transcript } = await transcriptOf(artifact, client);
  const body = await bodyOf(id, transcript, client);
  const length = isPartial(transcript)
    ? (transcript.pieces ?? []).reduce((sum, { text }) => sum + text.length, 0)
    : Number.POSITIVE_INFINITY;
  if (length === 0)
    throw new CommandError("the task ended before it said anything: there is nothing to compare");
  const now = await client.run(body, (text) => text.length >= length);
  const compared = compareRuns(transcript, now);
  if (compared === null) throw new CommandError("the transcript does not hold what was answered");
  const { taskId } = now;
  await print(
    json ? `${jsonOf(id, taskId, transcript, compared)}\n` : linesOf(id, taskId, transcript, compared),
  );
  return compared.equal ? 0 : 1;
}

async function transcriptOf(
  artifact: string,
  client: DaemonClient,
): Promise<{ id: string | null; transcript: ReadTranscript }> {
  const isId = /^[0-9a-f]{64}$/.test(artifact);
  const found = isId ? await client.get(`/v1/artifacts/${artifact}`) : readJson(artifact);
  if (found === null)
    throw new CommandError(
      `there is no artifact ${artifact}, or another key's: ask with its key or an admin's`,
    );
  const { content = found, id = null } = found as { content?: unknown; id?: unknown };
  const transcript = readTranscript(content);
  if (transcript === null)
    throw new CommandError(`${artifact} is no transcript of a version that is known here`);
  return { id: isId ? artifact : typeof id === "string" ? id : null, transcript };
}

/** In the pool where it ran, if that is still there; where its model changed, with the one it has now. */
async function bodyOf(
  id: string | null,
  transcript: ReadTranscript,
  client: DaemonClient,
): Promise<Record<string, unknown>> {
  const { pool_id: poolId } = transcript.task;
  const { pools = [] } = ((await client.get("/v1/pools")) ?? {}) as { pools?: Record<string, unknown>[] };
  const pool = pools.find((one) => one.id === poolId) ?? null;
  const body = requestAgain(transcript, pool === null ? null : String(poolId));
  if (body === null)
    throw new CommandError(
      "the transcript does not hold what was asked (artifacts.transcripts redacted, or too large)",
    );
  if (pool !== null && pool.model_ref !== body.model_ref) delete body.model_ref;
  if (id !== null) body.metadata = { replay_of: id };
  return body;
}

function readJson(path: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(readFileSync(path, "utf8"));
    if (typeof value === "object" && value !== null) return value as Record<string, unknown>;
  } catch (error) {
    const code = systemCode(error);
    if (code !== null)
      throw new CommandError(`${path} is no artifact's id, and no file that can be read (${code})`);
    if (!(error instanceof SyntaxError)) throw error;
  }
  throw new CommandError(`${path} does not hold an artifact as JSON`);
}

const jsonOf = (id: string | null, taskId: string, then: ReadTranscript, compared: Comparison): string =>
  JSON.stringify({
    artifact_id: id,
    task_id: then.task.task_id,
    replay_task_id: taskId,
    partial: isPartial(then),
    equal: compared.equal,
    of: compared.of,
    bytes: compared.bytes,
    difference:
      compared.difference === null
        ? null
        : {
            byte_offset: compared.difference.byteOffset,
            char_offset: compared.difference.charOffset,
            recorded: compared.difference.expected,
            replayed: compared.difference.actual,
          },
    otherwise: compared.otherwise,
  });

function linesOf(id: string | null, taskId: string, then: ReadTranscript, compared: Comparison): string {
  const { difference, bytes, of, otherwise } = compared;
  const lines: string[] = [];
  const what = isPartial(then)
    ? `the beginning that was said (${bytes} bytes of ${of})`
    : `${bytes} bytes of ${of}`;
  if (difference === null) lines.push(`equal: ${what}`);
  else {
    lines.push(`different: at byte ${difference.byteOffset} (character ${difference.charOffset}) of ${what}`);
    lines.push(
      `  recorded: ${JSON.stringify(difference.expected)}`,
      `  replayed: ${JSON.stringify(difference.actual)}`,
    );
  }
  for (const { name, recorded, replayed } of otherwise)
    lines.push(`  ${name}: ${String(recorded)}, now ${String(replayed)}`);
  if (difference !== null && then.request.determinism !== "strict")
    lines.push("  determinism was best_effort: cached context and neighbours may change the bytes");
  lines.push(`artifact ${id ?? "(a file)"}, replayed as task ${taskId}`);
  return `${lines.join("\n")}\n`;
}
