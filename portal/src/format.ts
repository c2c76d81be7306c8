/** Figures for people. */

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(value: number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  let unit = 0;
  let left = value;
  while (left >= 1024 && unit < UNITS.length - 1) {
    left /= 1024;
    unit += 1;
  }
  return `${unit === 0 || left >= 100 ? Math.round(left) : left.toFixed(1)} ${UNITS[unit]}`;
}

export function seconds(value: number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 60) return `${value.toFixed(value < 10 ? 2 : 1)} s`;
  const whole = Math.round(value);
  const parts: [number, string][] = [
    [Math.floor(whole / 86400), "d"],
    [Math.floor(whole / 3600) % 24, "h"],
    [Math.floor(whole / 60) % 60, "min"],
    [whole % 60, "s"],
  ];
  const first = parts.findIndex(([count]) => count > 0);
  return parts
    .slice(first, first + 2)
    .filter(([count]) => count > 0)
    .map(([count, unit]) => `${count} ${unit}`)
    .join(" ");
}

/** A limit as it was set: 1 s, 2.5 s, 500 ms. */
export function limit(value: number): string {
  return value < 1 ? `${Number((value * 1000).toFixed(1))} ms` : value < 60 ? `${Number(value.toFixed(2))} s` : seconds(value);
}

export function count(value: number): string {
  return value.toLocaleString("en");
}

const DAY_AND_TIME = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const DAY = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });

export function moment(value: string | null | undefined): string {
  return value ? DAY_AND_TIME.format(new Date(value)) : "–";
}

export function day(value: string | null | undefined): string {
  return value ? DAY.format(new Date(value)) : "–";
}

/** How long ago, or how long until: `3 min ago`, `in 2 h`. */
export function relative(value: string | null | undefined, now = Date.now()): string {
  if (!value) return "–";
  const difference = (new Date(value).getTime() - now) / 1000;
  const size = Math.abs(difference);
  if (size < 5) return "just now";
  const [length, unit]: [number, string] =
    size < 60 ? [1, "s"] : size < 3600 ? [60, "min"] : size < 86400 ? [3600, "h"] : [86400, "d"];
  const text = `${Math.floor(size / length)} ${unit}`;
  return difference < 0 ? `${text} ago` : `in ${text}`;
}

export function shortId(id: string): string {
  return id.length > 12 ? id.slice(0, 8) : id;
}
