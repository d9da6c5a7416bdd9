/**
 * Text for the operator's terminal. Called by the commands. Resolves once the text has left, so that a command
 * may end the process right after; a reader that went away is no reason to fail.
 */

export const print = (text: string): Promise<void> => write(process.stdout, text);
export const printError = (text: string): Promise<void> => write(process.stderr, text);

function write(stream: NodeJS.WriteStream, text: string): Promise<void> {
  return new Promise((resolve) => {
    stream.write(text, () => resolve());
  });
}

/** A closed terminal (EPIPE) must not end a daemon that has others to talk to. */
export function ignoreClosedTerminal(): void {
  process.stderr.on("error", () => undefined);
}
