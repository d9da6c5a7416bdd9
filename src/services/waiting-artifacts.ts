/**
 * Artifacts that are not in the artifact store yet: transcripts that wait to be moved there (transcripts.ts). Asked by
 * artifacts.ts for what its index does not know, so that an id is good from the moment in which it is told.
 */
import { parseDocument } from "../domain/artifact.ts";
import { OrchestratorError } from "../domain/errors.ts";
import type { TaskStore } from "../ports/task-store.ts";
import type { FindWaiting } from "./artifacts.ts";

export const waitingArtifacts =
  (store: Pick<TaskStore, "findTranscript">): FindWaiting =>
  (id, owner) => {
    const found = store.findTranscript(id, owner);
    if (found === null) return null;
    const document = found.text === null ? null : parseDocument(found.text);
    if (found.text === null || document === null)
      throw new OrchestratorError(
        "UNTRUSTED_ARTIFACT",
        "what is stored of this task does not match its digest any more: it cannot be shown",
      );
    const { keyId, createdMs } = found;
    const { kind, parent, tags, attachments } = document;
    const sizeBytes = Buffer.byteLength(found.text);
    const times = { createdMs, storedMs: createdMs };
    const entry = {
      shelf: "documents",
      owner: keyId,
      id,
      kind,
      ...times,
      sizeBytes,
      parent,
      tags,
      attachments,
    } as const;
    // No place in lists yet.
    return { entry: { ...entry, ordinal: 0 }, document };
  };
