/**
 * Waiting for something that only the world outside can bring about: a child process, a file, a socket. The one
 * place in the tests that uses a timer; everything inside the program is awaited as an event.
 */

const pollMs = 5;

/** Resolves with the first value of `look` that is neither false, null nor undefined; rejects after `timeoutMs`. */
export async function waitFor<T>(
  look: () => T | Promise<T>,
  timeoutMs = 5_000,
  what = look.toString(),
): Promise<Exclude<T, false | null | undefined>> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    const seen = await look();
    if (seen !== false && seen !== null && seen !== undefined) {
      return seen as Exclude<T, false | null | undefined>;
    }
    if (performance.now() > deadline) throw new Error(`not within ${timeoutMs} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, pollMs));
  }
}
