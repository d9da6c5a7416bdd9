/**
 * The series of graphics cards. Owned by prom-metrics.ts, which makes them when it first hears of a card: a machine
 * without one does not even name them.
 *
 * Always: set anew at every scrape; a figure that the card does not tell is absent. What a card does is shown at each
 * replica that computes on it, and once without a replica where none does; the memory at replica_id none is what no
 * replica is known to use, so that the sum by device is what the device has in use.
 */
import Counter from "prom-client/lib/counter.js";
import Gauge from "prom-client/lib/gauge.js";
import type Registry from "prom-client/lib/registry.js";
import type { GpuGauges } from "../../ports/telemetry.ts";
import { setCombined } from "./gauges.ts";
import type { LabelName } from "./label-budget.ts";

type Labels = Readonly<Partial<Record<LabelName, string>>>;
/** The labels within their budgets. */
type Shown = (series: string, labels: Labels) => Record<string, string>;

const ofReplica = ["engine", "engine_version", "pool_id", "replica_id", "device"] as const;
const nobody = { engine: "", engine_version: "", pool_id: "", replica_id: "" } as const;

export class GpuSeries {
  private readonly utilization: Gauge;
  private readonly vramUsed: Gauge;
  private readonly vramTotal: Gauge;
  private readonly vramFree: Gauge;
  private readonly watts: Gauge;
  private readonly celsius: Gauge;
  private readonly state: Gauge;
  private readonly info: Gauge;
  private readonly eccErrors: Counter;
  private readonly failures: Counter;

  constructor(
    private readonly registry: Registry,
    private readonly shown: Shown,
  ) {
    this.utilization = this.gauge(
      "gpu_utilization",
      "Share of time in which the card worked, 0 to 1, at each replica that computes on it.",
      ofReplica,
    );
    this.vramUsed = this.gauge(
      "vram_used_bytes",
      "Memory of the card in use by the replica; replica_id none: what no replica is known to use.",
      ofReplica,
    );
    this.vramTotal = this.gauge("gpu_memory_total_bytes", "Memory of the card.", ["device"]);
    this.vramFree = this.gauge("gpu_memory_free_bytes", "Memory of the card that is free.", ["device"]);
    this.watts = this.gauge("gpu_power_watts", "Power that the card draws.", ["device"]);
    this.celsius = this.gauge("gpu_temperature_celsius", "Temperature of the card.", ["device"]);
    this.state = this.gauge("gpu_state", "1 for the state that the card is in: ok, lost or reset_required.", [
      "device",
      "state",
    ]);
    this.info = this.gauge("gpu_info", "1; the labels say which card it is.", [
      "device",
      "vendor",
      "model",
      "uuid",
      "driver_version",
    ]);
    this.eccErrors = this.counter(
      "gpu_ecc_errors_total",
      "Errors of the card's memory since its driver was loaded, corrected and uncorrected.",
      ["device", "kind"],
    );
    this.failures = this.counter(
      "gpu_failed_samples_total",
      "Samples in which the card was lost or did not answer everything.",
      ["device"],
    );
  }

  read(gpus: readonly GpuGauges[]): void {
    for (const series of [
      this.utilization,
      this.vramUsed,
      this.vramTotal,
      this.vramFree,
      this.watts,
      this.celsius,
      this.state,
      this.info,
      this.eccErrors,
      this.failures,
    ])
      series.reset();
    const busiest = new Map<string, number>();
    for (const gpu of gpus) {
      this.readDevice(gpu);
      this.readShares(gpu, busiest);
    }
  }

  private readDevice({ device: card, sample, failures }: GpuGauges): void {
    const device = card.id;
    const of = this.shown("gpu_state", { device });
    this.state.set(this.shown("gpu_state", { device, state: sample.state }), 1);
    this.info.set(
      this.shown("gpu_info", {
        device,
        vendor: card.vendor,
        model: card.model ?? "",
        uuid: card.uuid ?? "",
        driver_version: card.driverVersion ?? "",
      }),
      1,
    );
    this.failures.inc(of, failures);
    const { memory, powerWatts, temperatureCelsius, eccErrors } = sample;
    if (memory !== null) {
      this.vramTotal.set(of, memory.totalBytes);
      this.vramFree.set(of, memory.freeBytes);
    }
    if (powerWatts !== null) this.watts.set(of, powerWatts);
    if (temperatureCelsius !== null) this.celsius.set(of, temperatureCelsius);
    for (const kind of eccErrors === null ? [] : (["corrected", "uncorrected"] as const))
      this.eccErrors.inc(this.shown("gpu_ecc_errors_total", { device, kind }), eccErrors?.[kind] ?? 0);
  }

  private readShares({ device: { id }, sample, replicas }: GpuGauges, busiest: Map<string, number>): void {
    const { memory, utilization } = sample;
    const owners = replicas.map((replica) => ({
      usedBytes: replica.usedBytes,
      labels: {
        engine: replica.engine,
        engine_version: replica.engineVersion,
        pool_id: replica.poolId,
        replica_id: replica.replicaId,
        device: id,
      },
    }));
    const none = { ...nobody, device: id };
    if (utilization !== null)
      for (const labels of owners.length === 0 ? [none] : owners.map((owner) => owner.labels))
        setCombined(this.utilization, busiest, this.shown("gpu_utilization", labels), utilization, Math.max);
    let rest = memory?.usedBytes ?? null;
    for (const { usedBytes, labels } of owners) {
      if (usedBytes === null) continue;
      this.vramUsed.inc(this.shown("vram_used_bytes", labels), usedBytes);
      if (rest !== null) rest = Math.max(0, rest - usedBytes);
    }
    if (rest !== null) this.vramUsed.inc(this.shown("vram_used_bytes", none), rest);
  }

  private gauge(name: string, help: string, labelNames: readonly LabelName[]): Gauge {
    return new Gauge({ name, help, labelNames: [...labelNames], registers: [this.registry] });
  }

  private counter(name: string, help: string, labelNames: readonly LabelName[]): Counter {
    return new Counter({ name, help, labelNames: [...labelNames], registers: [this.registry] });
  }
}
