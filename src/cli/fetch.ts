/**
 * `fetch <model>`: has a running daemon fetch a model into its models folder, shows how far it is, and says how it came
 * out. Called by main.ts.
 *
 * Always holds: the daemon does the work, so that ending this command ends nothing there. Exit code: 0 the file is there and
 * right, 1 it is not, 2 it could not be told.
 */
import type { ConfigFlags } from "../app/config.ts";
import type { Composition } from "../app/daemon.ts";
import { idOf, isRemote, parseModelRef, refText } from "../domain/model-ref.ts";
import { type DaemonFlags, onDaemon } from "./daemon-address.ts";
import { CommandError, type DaemonClient } from "./daemon-client.ts";
import { print, printError } from "./print.ts";

export interface FetchFlags extends DaemonFlags {
  /** hf:…, https://… or the id of a catalog entry. */
  readonly ref: string;
  readonly id?: string | undefined;
  readonly sha256?: string | undefined;
  readonly json?: boolean | undefined;
}

const path = "/v1/catalog/models";
const lookEveryMs = 500;
/** Where there is no terminal whose line could be written anew. */
const lineEveryMs = 10_000;

type Fields = Record<string, unknown>;

export async function fetchModel(
  flags: FetchFlags,
  configFlags: ConfigFlags,
  composition: Pick<Composition, "readModelKind" | "clock">,
): Promise<number> {
  return onDaemon(flags, configFlags, composition, async (client) => {
    const id = await begin(flags, client);
    return tell(await follow(id, client, composition.clock), flags.json === true);
  });
}

/** @returns the entry's id. */
async function begin({ ref, id, sha256 }: FetchFlags, client: DaemonClient): Promise<string> {
  const parsed = parseModelRef(ref);
  if (!parsed.ok) throw new CommandError(parsed.problem);
  if (parsed.ref.kind === "catalog") {
    if (id !== undefined || sha256 !== undefined)
      throw new CommandError(`${parsed.ref.id} is an entry of the catalog: leave --id and --sha256 out`);
    return await resume(parsed.ref.id, client);
  }
  if (!isRemote(parsed.ref))
    throw new CommandError(`${ref} is a file of this machine: there is nothing to fetch`);
  const name = id ?? idOf(parsed.ref);
  const there = await client.get(`${path}/${name}`);
  // What more its entry says, tags for one, stays.
  if (there?.model_ref === refText(parsed.ref) && (sha256 ?? there.digest) === there.digest)
    return await resume(name, client);
  await client.post(path, { id: name, model_ref: ref, digest: sha256 ?? null, fetch: true });
  return name;
}

async function resume(id: string, client: DaemonClient): Promise<string> {
  if ((await client.post(`${path}/${id}/fetch`, {})) === null)
    throw new CommandError(
      `the catalog has no entry ${id}: name hf:ORG/REPO/FILE.gguf or https://HOST/FILE.gguf`,
    );
  return id;
}

/** The entry once nothing runs for its file any more. */
async function follow(id: string, client: DaemonClient, clock: Composition["clock"]): Promise<Fields> {
  const isTerminal = process.stderr.isTTY === true;
  let [saidMs, before]: [number, { bytes: number; ms: number } | null] = [clock.nowMs(), null];
  for (;;) {
    const entry = await client.get(`${path}/${id}`);
    if (entry === null) throw new CommandError(`the entry ${id} was deleted meanwhile`);
    const job = entry.job as Fields | null;
    if (job === null) {
      if (isTerminal) await printError("\r\x1b[K");
      return entry;
    }
    const now = { bytes: Number(job.bytes_done), ms: clock.nowMs() };
    if (isTerminal) await printError(`\r\x1b[K${progressLine(id, job, before, now)}`);
    else if (now.ms - saidMs >= lineEveryMs) {
      saidMs = now.ms;
      await printError(`${progressLine(id, job, before, now)}\n`);
    }
    before = now;
    await new Promise<void>((resolve) => void clock.setTimer(lookEveryMs, resolve));
  }
}

function progressLine(
  id: string,
  job: Fields,
  before: { bytes: number; ms: number } | null,
  now: { bytes: number; ms: number },
): string {
  const { phase, state, bytes_total: total, interruptions } = job;
  if (state === "waiting") return `${id}: waits for others`;
  const share = typeof total === "number" && total > 0 ? `${Math.floor((now.bytes / total) * 100)} %, ` : "";
  const of = typeof total === "number" ? ` of ${mebibytes(total)}` : "";
  const moved = before === null ? 0 : now.bytes - before.bytes;
  const speed = before === null || moved < 0 ? "" : `, ${mebibytes((moved / (now.ms - before.ms)) * 1000)}/s`;
  const broken = Number(interruptions) > 0 ? `, ${String(interruptions)} interruptions` : "";
  return `${id}: ${String(phase)}, ${share}${mebibytes(now.bytes)}${of}${speed}${broken}`;
}

const mebibytes = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

async function tell(entry: Fields, json: boolean): Promise<number> {
  const { id, present, path: file, fetch_problem: problem, trust_problem: distrust } = entry;
  const verification = entry.verification as Fields | null;
  const right = present === true && verification?.result === "done";
  if (json) await print(`${JSON.stringify(entry)}\n`);
  else if (right)
    await print(
      `${String(file)}\nsha256 ${String(verification?.digest)} (${String(verification?.reason)})\n`,
    );
  if (right) return 0;
  const why =
    problem ?? distrust ?? (present === true ? "it was not compared to its end" : "it was called off");
  await printError(`orchestratord: ${String(id)} is not there, or not right: ${String(why)}\n`);
  return 1;
}
