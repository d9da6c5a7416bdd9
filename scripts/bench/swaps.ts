/**
 * Three models and room for one: how often the model is changed, how long the work and the waiting take and what a
 * change costs, through orchestratord and through llama-server's router, interleaved in one run; and beside both a change
 * that is made by hand. Prints a table and writes bench-results/swaps.json.
 *
 * `bun scripts/bench/swaps.ts --rounds 3 --handovers 15`; exit code 1 where a bound of the daemon's is not kept.
 */
import { type BenchFiles, engineBench, writeFigures } from "./files.ts";
import { allAtOnce, handover, inTurn, oneBetween, settle } from "./swaps-mixes.ts";
import { betweenLines, daemonFigures, handoverLines, mixLines } from "./swaps-report.ts";
import {
  ByHand,
  type HandMade,
  makeModels,
  modelNames,
  type SwapSide,
  startDaemonSide,
  startRouterSide,
} from "./swaps-sides.ts";

type NumericOption =
  | ("rounds" | "handovers" | "each" | "clients" | "tokens" | "slots")
  | ("swapMaxWait" | "swapTurnMax" | "betweenMaxWait");

const options = engineBench("swaps")
  .option("--rounds <n>", "interleaved repetitions of each mix", Number, 3)
  .option("--handovers <n>", "interleaved changes of model of which the cost is taken", Number, 15)
  .option("--each <n>", "requests for each model in a mix", Number, 50)
  .option("--clients <n>", "clients that wait for their answers", Number, 5)
  .option("--tokens <n>", "tokens of an answer", Number, 16)
  .option("--slots <n>", "slots of an engine", Number, 2)
  .option("--swap-max-wait <ms>", "residency.swap_max_wait_ms", Number, 30_000)
  .option("--between-max-wait <ms>", "the same for the one request among constant traffic", Number, 3_000)
  .option("--swap-turn-max <ms>", "residency.swap_turn_max_ms", Number, 30_000)
  .option("--load-mode <mode>", "llama-server's; none: a load reads the whole file and takes longer", "auto")
  .option("--sides <list>", "of daemon, router", "daemon,router")
  .parse()
  .opts<BenchFiles & Record<NumericOption, number> & { loadMode: string; sides: string }>();
const { rounds, handovers, each, clients, tokens, slots } = options;
const turnsEach = Math.ceil(each / clients);

const say = (line: string): void => void process.stderr.write(`${line}\n`);

const models = await makeModels();
process.on("SIGINT", () => {
  models.remove();
  process.exit(130);
});
const rules = { swapMaxWaitMs: options.swapMaxWait, swapTurnMaxMs: options.swapTurnMax };
const betweenRules = { ...rules, swapMaxWaitMs: options.betweenMaxWait };
const { binary, engineBin, loadMode } = options;
const sideOptions = { binary, engineBin, models, loadMode, tokens, slots, ...rules };
let daemon = options.sides.includes("daemon") ? await startDaemonSide(sideOptions) : null;
const router = options.sides.includes("router") ? await startRouterSide(sideOptions) : null;
const sidesNow = (): readonly SwapSide[] => [daemon, router].filter((side) => side !== null);
const byHand = new ByHand(sideOptions);

/** In turns whose order alternates. */
async function interleaved<T>(times: number, one: (side: SwapSide) => Promise<T>): Promise<Map<string, T[]>> {
  const sides = sidesNow();
  const figures = new Map<string, T[]>(sides.map(({ name }) => [name, []]));
  for (let n = 0; n < times; n++)
    for (const side of n % 2 === 0 ? sides : sides.toReversed()) {
      figures.get(side.name)?.push(await one(side));
      say(`${side.name}: ${n + 1} of ${times}`);
    }
  return figures;
}

/** Each model goes to the next one, once on each side and once by hand before the pair after it. */
async function measureHandovers() {
  const sides = sidesNow();
  const gaps = new Map<string, number[]>(sides.map(({ name }) => [name, []]));
  const hand: HandMade[] = [];
  for (const side of sides) await settle(side, modelNames[0]);
  // One round through the models is not counted: the first load of each is another.
  for (let n = -modelNames.length; n < handovers; n++) {
    const at = n + modelNames.length;
    const [from = "a", to = "b"] = [
      modelNames[at % modelNames.length],
      modelNames[(at + 1) % modelNames.length],
    ];
    const turns = [
      async () => {
        const swap = await byHand.swap(from, to, at);
        if (n >= 0) hand.push(swap);
      },
      ...sides.map((side) => async () => {
        const gapMs = await handover(side, from, to);
        if (n >= 0) gaps.get(side.name)?.push(gapMs);
      }),
    ];
    for (const turn of at % 2 === 0 ? turns : turns.toReversed()) await turn();
    const shown = [...gaps].map(([name, all]) => `, ${name} ${all.at(-1)?.toFixed(0) ?? "-"} ms`);
    say(
      `handover ${n + 1} of ${handovers}: by hand ${hand.at(-1)?.gapMs.toFixed(0) ?? "-"} ms${shown.join("")}`,
    );
  }
  return { gaps, hand };
}

/** The sum over its labels. */
const totalOf = (metrics: string, name: string): number =>
  [...metrics.matchAll(new RegExp(`^${name}\\{[^}]*\\} (\\d+)`, "gm"))].reduce(
    (sum, [, n]) => sum + Number(n),
    0,
  );

let broken: readonly string[] = [];
try {
  const { gaps, hand } = await measureHandovers();
  const logOfHandovers = daemon?.log() ?? "";
  const atOnce = await interleaved(rounds, (side) => allAtOnce(side, each));
  const turns = await interleaved(rounds, (side) => inTurn(side, clients, turnsEach));
  const mixes =
    daemon === null
      ? null
      : { log: daemon.log(), metrics: await daemon.metrics(), started: daemon.started() };
  // Another bound, so another daemon.
  await daemon?.stop();
  daemon = mixes === null ? null : await startDaemonSide({ ...sideOptions, ...betweenRules });
  const between = await interleaved(rounds, (side) =>
    oneBetween(side, clients, betweenRules.swapMaxWaitMs * 4),
  );

  const figures: Record<string, unknown> = {
    options,
    modelBytes: models.bytes,
    handovers: { hand, ...Object.fromEntries(gaps) },
    atOnce: Object.fromEntries(atOnce),
    inTurn: Object.fromEntries(turns),
    between: Object.fromEntries(between),
  };
  const lines = [
    `three models of ${(models.bytes / 1e6).toFixed(0)} MB, room for one, ${slots} slots, ${tokens} tokens an answer`,
    ...mixLines(`A B C in turn, ${each} times, all sent at once`, atOnce),
    ...mixLines(`${clients} clients, each A B C in turn, ${turnsEach} times`, turns),
    ...betweenLines(`one request for B while ${clients} clients ask for A without a pause`, between),
    ...handoverLines("from the last token of a model to the first of the next one, which waits", hand, gaps),
  ];
  if (daemon !== null && mixes !== null) {
    const run = {
      log: mixes.log,
      logOfHandovers,
      logOfBetween: daemon.log(),
      between: between.get(daemon.name) ?? [],
      betweenMaxWaitMs: betweenRules.swapMaxWaitMs,
    };
    const told = daemonFigures({ ...run, pools: modelNames.length, ...rules });
    const counted = {
      started: mixes.started,
      loads: totalOf(mixes.metrics, "pool_loads_total"),
      unloads: totalOf(mixes.metrics, "pool_unloads_total"),
    };
    broken = told.broken;
    Object.assign(figures, { daemon: told, counted });
    lines.push(
      ...told.lines,
      `  processes started for the mixes and handovers ${counted.started}; pool_loads_total ${counted.loads}, pool_unloads_total ${counted.unloads}`,
    );
  }
  for (const line of lines) process.stdout.write(`${line}\n`);
  say(`written: ${writeFigures("swaps", figures)}`);
} finally {
  for (const side of sidesNow()) await side.stop();
  await byHand.stop();
  models.remove();
}
for (const what of broken) say(`NOT KEPT: ${what}`);
process.exit(broken.length === 0 ? 0 : 1);
