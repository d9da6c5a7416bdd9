/**
 * The part of the composition root that opens what the daemon keeps: tasks, the journal, artifacts. bootstrap.ts calls it.
 */
import { join } from "node:path";
import { limits } from "../domain/limits.ts";
import { FolderBlobStore } from "../infra/blobs/folder-blob-store.ts";
import { S3BlobStore } from "../infra/blobs/s3-blob-store.ts";
import { FileJournal } from "../infra/journal/file-journal.ts";
import { FolderFiles } from "../infra/journal/folder-files.ts";
import { SqliteArtifactIndex } from "../infra/sqlite/artifact-index.ts";
import { SqliteTaskStore } from "../infra/sqlite/sqlite-task-store.ts";
import { type BlobStore, isBlobError } from "../ports/blob-store.ts";
import type { Clock } from "../ports/clock.ts";
import { isJournalError } from "../ports/journal.ts";
import { isStoreError, type StoreError, type TaskStore } from "../ports/task-store.ts";
import type { Log } from "../ports/telemetry.ts";
import { WriteAhead } from "../services/write-ahead.ts";
import type { Config } from "./config.ts";
import type { S3Spec } from "./config-artifacts.ts";
import { isStartError, StartError } from "./start-error.ts";

/** @throws StartError that names the file and says what to do. */
export function openStore({ stateDir, storage }: Config, log: Log): TaskStore {
  const onTrouble = (error: StoreError): void =>
    log.error("storage_trouble", { human: error.message }, error);
  try {
    return new SqliteTaskStore({ stateDir, durability: storage.durability, onTrouble });
  } catch (error) {
    if (isStoreError(error)) throw new StartError("state_dir", error.message);
    throw error;
  }
}

/** Recovered. @throws StartError that names the file and says what to do. */
export function openJournal(
  stateDir: string,
  clock: Clock,
  log: Log,
  onFatal: (error: unknown) => void,
): WriteAhead {
  try {
    const journal = new FileJournal(new FolderFiles(join(stateDir, "journal")));
    const ahead = new WriteAhead(journal, clock, log, onFatal);
    ahead.recover();
    return ahead;
  } catch (error) {
    if (isJournalError(error)) throw new StartError("state_dir", error.message);
    throw error;
  }
}

/** @throws StartError that names the folder or the service. */
export async function openArtifacts(
  { artifacts: { root, s3 }, stateDir }: Config,
  clock: Clock,
): Promise<{ readonly store: BlobStore; readonly index: SqliteArtifactIndex }> {
  const path = join(stateDir, "artifacts.sqlite");
  try {
    if (s3 === null) {
      const store = await FolderBlobStore.open(root);
      return { store, index: new SqliteArtifactIndex({ path, place: root }) };
    }
    const store = await openBucket(s3, clock);
    const place = `${s3.endpoint}/${s3.bucket}/${s3.prefix}`;
    return { store, index: new SqliteArtifactIndex({ path, place }) };
  } catch (error) {
    if (isStartError(error)) throw error;
    const message = error instanceof Error ? error.message : String(error);
    if (s3 !== null && isBlobError(error))
      throw new StartError("artifacts", `artifacts.s3: ${message}`, { cause: error });
    if (isStoreError(error)) throw new StartError("state_dir", message, { cause: error });
    throw new StartError(
      "artifacts",
      `artifacts.root ${root} cannot be used (${message}): choose another folder`,
      { cause: error },
    );
  }
}

async function openBucket(of: S3Spec, clock: Clock): Promise<S3BlobStore> {
  const store = new S3BlobStore({
    endpoint: of.endpoint,
    bucket: of.bucket,
    region: of.region,
    prefix: of.prefix,
    accessKeyId: of.accessKeyId.secret.reveal(),
    secretAccessKey: of.secretAccessKey.secret.reveal(),
  });
  const { promise: late, reject } = Promise.withResolvers<never>();
  const timer = clock.setTimer(limits.artifactBucketMs, () =>
    reject(
      new StartError(
        "artifacts",
        `artifacts.s3: ${of.endpoint} did not answer in ${limits.artifactBucketMs} ms; check it`,
      ),
    ),
  );
  try {
    await Promise.race([store.check(), late]);
  } finally {
    timer.cancel();
  }
  return store;
}
