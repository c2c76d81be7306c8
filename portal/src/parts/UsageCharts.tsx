/** What was used over some days: figures, charts, and the share of each key. */

import "../styles/usage.css";

import { useMemo } from "preact/hooks";
import type { Usage } from "../api";
import { Chart } from "../charts/Chart";
import { cents, count, filled, gibSeconds, lastDays, outcomeSeries } from "../charts/figures";
import { seconds } from "../format";
import { Table } from "../ui/Table";

const MIB_IN_GIB = 1024;

export function UsageCharts({ usage, days }: { usage: Usage; days: number }) {
  const names = useMemo(() => lastDays(days, new Date()), [days, usage]);
  const rows = useMemo(() => filled(names, usage.days), [names, usage]);
  const series = useMemo(
    () => ({
      outcomes: outcomeSeries(rows),
      cpu: [{ name: "CPU time", colour: "--series-1", values: rows.map((day) => day.cpuS) }],
      memory: [{ name: "Memory", colour: "--series-3", values: rows.map((day) => day.memoryMbS / MIB_IN_GIB) }],
    }),
    [rows],
  );
  const { total } = usage;
  return (
    <>
      <dl class="figures">
        <Figure name="Runs and sandboxes" value={count(total.runs)} />
        <Figure name="Ended in an error" value={share(total.errors, total.runs)} />
        <Figure name="CPU time" value={seconds(total.cpuS)} />
        <Figure name="Memory over time" value={gibSeconds(total.memoryMbS / MIB_IN_GIB)} />
        <Figure name="Cost" value={cents(total.costCents)} />
      </dl>
      <div class="charts">
        <div class="charts-wide">
          <Chart title="Runs by outcome" unit="runs" days={names} series={series.outcomes} kind="bars" format={count} />
        </div>
        <Chart title="CPU time" unit="CPU seconds" days={names} series={series.cpu} kind="area" format={seconds} />
        <Chart title="Memory" unit="GiB held, times seconds" days={names} series={series.memory} kind="area" format={gibSeconds} />
      </div>
    </>
  );
}

export function KeyShares({ usage }: { usage: Usage }) {
  if (usage.keys.length === 0) {
    return null;
  }
  return (
    <section class="stack" aria-labelledby="by-key">
      <h2 id="by-key">By key</h2>
      <div class="table-frame">
        <Table
          caption="What each key used"
          rows={[...usage.keys].sort((one, other) => other.runs - one.runs)}
          rowKey={(key) => key.id}
          columns={[
            { title: "Key", cell: (key) => key.name || key.id },
            { title: "Runs", isNumber: true, cell: (key) => count(key.runs) },
            { title: "Errors", isNumber: true, cell: (key) => share(key.errors, key.runs) },
            { title: "CPU time", isNumber: true, cell: (key) => seconds(key.cpuS) },
            { title: "Cost", isNumber: true, cell: (key) => cents(key.costCents) },
          ]}
        />
      </div>
    </section>
  );
}

function share(part: number, whole: number): string {
  return whole > 0 ? `${count(part)} (${Math.round((100 * part) / whole)} %)` : count(part);
}

function Figure({ name, value }: { name: string; value: string }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{value}</dd>
    </div>
  );
}
