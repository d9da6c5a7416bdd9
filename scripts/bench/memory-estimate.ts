/**
 * `bun scripts/bench/memory-estimate.ts`: how far the estimate of a model's memory is from what llama-server reports
 * for it. Models of half a GB and more, all zeros and so holes on the disk, one at a time in a folder that is removed;
 * several settings each. Prints the table of docs/memory-estimate.md and writes bench-results/memory-estimate.json. Exit
 * code 1 where a total is off by more than 10 %.
 *
 * `--rpc HOST:PORT`: a ggml-rpc-server stands for an accelerator; the same models are then split between it and the host.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { Command } from "commander";
import {
  estimateMemory,
  type LoadSettings,
  type MemoryParts,
  totalOf,
} from "../../src/domain/model-memory.ts";
import { readModelShape } from "../../src/infra/engines/gguf-tensors.ts";
import { writeGguf } from "../model/gguf-writer.ts";
import { buildZeroModel } from "../model/zero-weights.ts";
import { defaultSettings, engineMemory } from "./engine-memory.ts";
import { writeFigures } from "./files.ts";
import { models, onDevice, onHost, randomSamples, type Sample } from "./memory-models.ts";

const options = new Command("memory-estimate")
  .option("--engine-bin <file>", "llama-server", resolve(import.meta.dir, "../../.engine/bin/llama-server"))
  .option("--only <text>", "only models whose name has it")
  .option("--rpc <host:port>", "a ggml-rpc-server that stands for an accelerator")
  .option("--random <n>", "so many models and settings by chance instead")
  .option("--seed <n>", "of those", "20261121")
  .parse()
  .opts<{ engineBin: string; only?: string; rpc?: string; random?: string; seed: string }>();

const folder = mkdtempSync(join(tmpdir(), "memory-estimate-"));
const remove = (): void => rmSync(folder, { recursive: true, force: true });
process.on("SIGINT", () => {
  remove();
  process.exit(130);
});

interface Row {
  readonly model: string;
  readonly type: string;
  readonly settings: LoadSettings;
  readonly estimated: { readonly host: MemoryParts; readonly device: MemoryParts };
  readonly reported: { readonly host: MemoryParts; readonly device: MemoryParts };
}

const error = (estimated: number, reported: number): number =>
  reported === 0 ? (estimated === 0 ? 0 : Number.POSITIVE_INFINITY) : estimated / reported - 1;
const both = ({ host, device }: Row["reported"]): number => totalOf(host) + totalOf(device);

/** Those of one model follow each other: it is written once. */
function samples(): Sample[] {
  if (options.random !== undefined) return randomSamples(Number(options.random), Number(options.seed));
  return Object.entries(models)
    .filter(([name]) => options.only === undefined || name.includes(options.only))
    .flatMap(([name, model]) =>
      (options.rpc === undefined ? onHost : onDevice)
        .filter(({ hostExpertLayers }) => hostExpertLayers === undefined || model.experts !== undefined)
        // A recurrent model has no cache whose type could be asked for.
        .filter(({ cacheTypeK }) => model.architecture !== "mamba" || cacheTypeK === undefined)
        .map((settings) => ({ name, model, settings })),
    );
}

const rows: Row[] = [];
let last: Sample["model"] | null = null;
try {
  for (const { name, model, settings: asked } of samples()) {
    const path = join(folder, "model.gguf");
    if (model !== last) await writeGguf(path, buildZeroModel(model));
    last = model;
    const type = model.endsType === undefined ? model.type : `${model.type}, ${model.endsType}`;
    const settings = { ...defaultSettings, ...asked };
    const { report } = await engineMemory({
      ...{ engineBin: options.engineBin, model: path, settings, verbosity: 4 },
      more: options.rpc === undefined ? [] : ["--rpc", options.rpc, "-fit", "off"],
    });
    const estimated = estimateMemory(readModelShape(path), settings);
    const row = { model: name, type, settings, estimated, reported: report };
    rows.push(row);
    process.stderr.write(`${line(row)}\n`);
  }
} finally {
  remove();
}

function line(row: Row): string {
  const { settings: s } = row;
  const mib = (bytes: number): string => (bytes / 2 ** 20).toFixed(bytes < 100 * 2 ** 20 ? 1 : 0);
  const pair = (part: keyof MemoryParts): string =>
    `${mib(row.estimated.host[part] + row.estimated.device[part])} / ${mib(row.reported.host[part] + row.reported.device[part])}`;
  const notes = [
    `${s.slots} × ${s.contextPerSlot}`,
    s.cacheTypeK === s.cacheTypeV ? s.cacheTypeK : `${s.cacheTypeK}, ${s.cacheTypeV}`,
    `-b ${s.batch} -ub ${s.ubatch}`,
    ...(s.flashAttention ? [] : ["-fa off"]),
    ...(s.unifiedKv ? ["-kvu"] : []),
    ...(s.mmap ? [] : ["-lm none"]),
    ...(s.gpuLayers > 0 ? [`-ngl ${Number.isFinite(s.gpuLayers) ? s.gpuLayers : "all"}`] : []),
    ...(s.offloadKv ? [] : ["-nkvo"]),
    ...(s.hostExpertLayers > 0 ? ["-cmoe"] : []),
  ].join(", ");
  const percent = (value: number): string => `${value >= 0 ? "+" : ""}${(100 * value).toFixed(1)} %`;
  const device =
    options.rpc === undefined
      ? []
      : [
          `${mib(totalOf(row.estimated.device))} / ${mib(totalOf(row.reported.device))}`,
          percent(error(totalOf(row.estimated.device), totalOf(row.reported.device))),
        ];
  const cells = [row.model, row.type, notes, pair("weightsBytes"), pair("kvBytes"), pair("computeBytes")];
  return `| ${[...cells, ...device, percent(error(both(row.estimated), both(row.reported)))].join(" | ")} |`;
}

const errors = rows.map((row) => error(both(row.estimated), both(row.reported)));
const worst = Math.max(...errors.map(Math.abs));
const head = ["model", "weights' type", "settings", "weights", "context", "compute"];
if (options.rpc !== undefined) head.push("on the device", "its error");
head.push("error of the total");
process.stdout.write(`| ${head.join(" | ")} |\n|${head.map(() => "---|").join("")}\n`);
for (const row of rows) process.stdout.write(`${line(row)}\n`);
process.stdout.write(`\n${rows.length} loads, the total off by ${(100 * worst).toFixed(1)} % at most\n`);
const parts = rows.map(({ estimated: e, reported: r }) =>
  Math.abs(error(e.host.computeBytes + e.device.computeBytes, r.host.computeBytes + r.device.computeBytes)),
);
parts.sort((a, b) => a - b);
const at = (share: number): string => (100 * (parts[Math.floor(share * (parts.length - 1))] ?? 0)).toFixed(1);
process.stdout.write(
  `compute buffers alone: median ${at(0.5)} %, nine of ten ${at(0.9)} %, worst ${at(1)} %\n`,
);
const kind = options.random === undefined ? "" : "-random";
writeFigures(`memory-estimate${options.rpc === undefined ? "" : "-device"}${kind}`, rows);
if (!(worst <= 0.1)) process.exitCode = 1;
