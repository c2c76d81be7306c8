/** Turns what the server counted into the rows that the charts draw. */

import type { Usage } from "../api";
import type { Series } from "./Chart";

export type DayUsage = Usage["days"][number];

const DAY_MS = 86_400_000;

/** The last `count` UTC days up to `until`, ascending. */
export function lastDays(count: number, until: Date): string[] {
  const end = Date.parse(`${until.toISOString().slice(0, 10)}T00:00:00Z`);
  return Array.from({ length: count }, (_, index) => new Date(end - (count - 1 - index) * DAY_MS).toISOString().slice(0, 10));
}

/** One row for each day: the server leaves out those on which nothing ran. */
export function filled(days: string[], found: DayUsage[]): DayUsage[] {
  const known = new Map(found.map((day) => [day.date, day]));
  return days.map(
    (date) => known.get(date) ?? { date, runs: 0, errors: 0, cpuS: 0, wallS: 0, memoryMbS: 0, costCents: 0, outcomes: {} },
  );
}

/** Outcomes in the order in which they are stacked: what went well first. The rare ones are one series. */
const OUTCOMES: [name: string, title: string, colour: string][] = [
  ["exited", "Exited", "--series-1"],
  ["wall_time", "Time limit", "--series-2"],
  ["cpu_time", "CPU limit", "--series-3"],
  ["memory", "Memory limit", "--series-4"],
  ["signaled", "Killed by a signal", "--series-5"],
];

/** What the runs of each day came to. Without outcomes from the server: those that failed, and the others. */
export function outcomeSeries(days: DayUsage[]): Series[] {
  if (days.every((day) => Object.keys(day.outcomes).length === 0)) {
    return [
      { name: "Succeeded", colour: "--series-1", values: days.map((day) => Math.max(0, day.runs - day.errors)) },
      { name: "Failed", colour: "--series-4", values: days.map((day) => day.errors) },
    ];
  }
  const named = new Set(OUTCOMES.map(([name]) => name));
  const series = OUTCOMES.map(([name, title, colour]) => ({
    name: title,
    colour,
    values: days.map((day) => day.outcomes[name] ?? 0),
  }));
  series.push({
    name: "Other",
    colour: "--series-6",
    values: days.map((day) =>
      Object.entries(day.outcomes).reduce((sum, [name, count]) => sum + (named.has(name) ? 0 : count), 0),
    ),
  });
  return series.filter((one, index) => index === 0 || one.values.some((value) => value > 0));
}

const COUNT = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 });
const COMPACT = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });

export function count(value: number): string {
  return value >= 10_000 ? COMPACT.format(value) : COUNT.format(value);
}

/** GiB times seconds. */
export function gibSeconds(value: number): string {
  return `${value > 0 && value < 0.1 ? value.toPrecision(1) : count(value)} GiB·s`;
}

/** Cents in dollars: small sums with the digits that make them more than nothing. */
export function cents(value: number): string {
  const digits = value > 0 && value < 1 ? 5 : 2;
  return new Intl.NumberFormat(undefined, { style: "currency", currency: "USD", maximumFractionDigits: digits }).format(value / 100);
}
