/**
 * Which build this is. scripts/build.ts defines both names while it compiles; run from source, the version is
 * that of package.json and the commit is "dev". Read by the banner, `--version`, /metrics and capabilities.
 */
import packageJson from "../../package.json" with { type: "json" };

declare const ORCHD_VERSION: string;
declare const ORCHD_COMMIT: string;

export interface BuildInfo {
  /** As in package.json: 1.2.3 */
  readonly version: string;
  /** Short hash, "-dirty" behind it where the tree differed; "dev" when run from source. */
  readonly commit: string;
}

export const buildInfo: BuildInfo = Object.freeze({
  version: typeof ORCHD_VERSION === "string" ? ORCHD_VERSION : packageJson.version,
  commit: typeof ORCHD_COMMIT === "string" ? ORCHD_COMMIT : "dev",
});
