/** The process's memory, where the runtime has to be told something. bootstrap.ts hands it to services/idle-trim.ts. */

/** A full collection, and what it freed back to the system: some ten milliseconds on this program's heap. */
export function giveMemoryBack(): void {
  Bun.gc(true);
  Bun.shrink();
}
