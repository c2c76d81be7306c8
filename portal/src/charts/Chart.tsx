/** A chart of days (uPlot) with what a canvas lacks: a legend in words, a reading under the pointer, and a table. */

import "uplot/dist/uPlot.min.css";

import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import { colour, isDark } from "../theme";
import { Table } from "../ui/Table";

export interface Series {
  name: string;
  /** Name of a custom property of the style sheet, such as `--series-1`. */
  colour: string;
  values: number[];
}

export interface ChartProps {
  title: string;
  /** What the figures count, for the axis and the table. */
  unit: string;
  /** UTC days, `2026-11-21`, ascending. */
  days: string[];
  series: Series[];
  /** Bars stand on each other and show what a sum is made of; an area shows one figure over time. */
  kind: "bars" | "area";
  format(value: number): string;
}

const HEIGHT = 220;

function seconds(day: string): number {
  return Date.parse(`${day}T00:00:00Z`) / 1000;
}

const DAY_FORMAT = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", timeZone: "UTC" });

export function dayName(day: string): string {
  return DAY_FORMAT.format(seconds(day) * 1000);
}

/** Each series plus those before it: what uPlot draws as stacked bars, the tallest first. */
export function stacked(series: Series[]): number[][] {
  const sums: number[][] = [];
  let below: number[] = [];
  for (const one of series) {
    below = one.values.map((value, index) => value + (below[index] ?? 0));
    sums.push(below);
  }
  return sums;
}

/** The colour, and what is behind it shines through. */
function sheer(property: string): string {
  return colour(property).replace("rgb(", "rgba(").replace(")", ", 0.2)");
}

/** Room for the longest of the marks beside the chart: about seven pixels a letter. */
function widthOf(_: uPlot, marks: string[] | null): number {
  return 16 + 7 * Math.max(4, ...(marks ?? []).map((mark) => mark.length));
}

function optionsOf(props: ChartProps, width: number, onPoint: (index: number | null) => void): uPlot.Options {
  const font = `12px ${getComputedStyle(document.body).fontFamily}`;
  const axis: uPlot.Axis = {
    font,
    stroke: () => colour("--muted"),
    grid: { stroke: () => colour("--line"), width: 1 },
    ticks: { show: false },
  };
  const isBars = props.kind === "bars";
  const drawn = isBars ? [...props.series].reverse() : props.series;
  return {
    width,
    height: HEIGHT,
    padding: [12, 8, 0, 0],
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, points: { show: !isBars } },
    scales: {
      x: { time: true, range: (_, from, to) => (isBars ? [from - 43_200, to + 43_200] : [from, to]) },
      y: { range: (_, __, most) => [0, most > 0 ? most * 1.1 : 1] },
    },
    tzDate: (at) => uPlot.tzDate(new Date(at * 1000), "Etc/UTC"),
    axes: [
      { ...axis, grid: { show: false }, values: (_, marks) => marks.map((at) => DAY_FORMAT.format(at * 1000)), space: 64, size: 30 },
      { ...axis, size: widthOf, values: (_, marks) => marks.map((mark) => props.format(mark)) },
    ],
    series: [
      {},
      ...drawn.map<uPlot.Series>((one) => ({
        label: one.name,
        stroke: () => colour(one.colour),
        fill: () => (isBars ? colour(one.colour) : sheer(one.colour)),
        width: isBars ? 0 : 2,
        points: { show: false },
        ...(isBars ? { paths: uPlot.paths.bars?.({ size: [0.72, 36] }) } : {}),
      })),
    ],
    hooks: { setCursor: [(chart) => onPoint(chart.cursor.idx ?? null)] },
  };
}

function dataOf(props: ChartProps): uPlot.AlignedData {
  const values = props.kind === "bars" ? stacked(props.series).reverse() : props.series.map((one) => one.values);
  return [props.days.map(seconds), ...values];
}

export function Chart(props: ChartProps) {
  const place = useRef<HTMLDivElement>(null);
  const [point, setPoint] = useState<number | null>(null);
  const totals = props.series.map((one) => one.values.reduce((sum, value) => sum + value, 0));

  useEffect(() => {
    const parent = place.current;
    if (parent === null) {
      return;
    }
    const chart = new uPlot(optionsOf(props, parent.clientWidth, setPoint), dataOf(props), parent);
    const sizes = new ResizeObserver(() => chart.setSize({ width: parent.clientWidth, height: HEIGHT }));
    sizes.observe(parent);
    // The colours are read while it draws, once the style sheet has followed the theme.
    const unfollow = isDark.subscribe(() => requestAnimationFrame(() => chart.redraw(false)));
    return () => {
      sizes.disconnect();
      unfollow();
      chart.destroy();
    };
  }, [props.days, props.series, props.kind]);

  const reading = point === null ? null : (props.days[point] ?? null);
  return (
    <figure class="chart">
      <figcaption>
        <h2>{props.title}</h2>
        <p class="chart-reading">
          {reading === null ? `${props.days.length} days, ${props.unit}` : `${dayName(reading)}, ${props.unit}`}
        </p>
      </figcaption>
      <ul class="chart-legend">
        {props.series.map((one, index) => (
          <li key={one.name}>
            <span class={`chart-swatch swatch-${one.colour.slice(2)}`} aria-hidden="true" />
            {one.name}
            <b>{props.format(point === null ? (totals[index] ?? 0) : (one.values[point] ?? 0))}</b>
          </li>
        ))}
      </ul>
      <div ref={place} class="chart-canvas" role="img" aria-label={`${props.title}, chart; the table below has the figures.`} />
      <details class="chart-table">
        <summary>{props.title} as a table</summary>
        <div class="chart-table-scroll" tabIndex={0} role="region" aria-label={`${props.title}, table`}>
          <Table
            caption={`${props.title} (${props.unit}) by UTC day`}
            rows={props.days.map((day, index) => ({ day, index }))}
            rowKey={(row) => row.day}
            columns={[
              { title: "Day", cell: (row) => row.day },
              ...props.series.map((one) => ({
                title: one.name,
                isNumber: true,
                cell: (row: { index: number }) => props.format(one.values[row.index] ?? 0),
              })),
            ]}
          />
        </div>
      </details>
    </figure>
  );
}
