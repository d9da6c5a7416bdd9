/** `--version`: one line on stdout. Called by main.ts. */
import { buildInfo } from "../app/build-info.ts";
import { print } from "./print.ts";

export async function version(): Promise<number> {
  await print(`orchestratord ${buildInfo.version} (${buildInfo.commit})\n`);
  return 0;
}
