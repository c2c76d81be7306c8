/** Drawings of 16 by 16, in the colour of the text around them; hidden from screen readers, which get the label beside. */

const PATHS = {
  play: "M4 2.5v11l9-5.5z",
  box: "M8 1.5 14 4.5v7L8 14.5 2 11.5v-7zM2 4.5l6 3 6-3M8 7.5v7",
  list: "M5.5 4h8M5.5 8h8M5.5 12h8M2.5 4h.01M2.5 8h.01M2.5 12h.01",
  chart: "M2 14h12M4 11V7M8 11V3M12 11V6",
  key: "M10 9a3.5 3.5 0 1 0-3.3-2.3L2 11.5V14h2.5v-1.5H6V11h1.5l.8-.8A3.5 3.5 0 0 0 10 9zM11 5h.01",
  user: "M8 8a3 3 0 1 0 0-6 3 3 0 0 0 0 6zM2.5 14c.5-3 2.7-4.5 5.5-4.5s5 1.5 5.5 4.5",
  users: "M6 7.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5zM1.5 13.5c.3-2.7 2-4 4.5-4s4.2 1.3 4.5 4M11 3a2.3 2.3 0 0 1 0 4.4M12.2 9.8c1.4.5 2.1 1.7 2.3 3.7",
  server: "M2 2.5h12v4.5H2zM2 9h12v4.5H2zM4.5 4.750h.01M4.5 11.250h.01",
  heart: "M1.5 8.5h3l1.5-4 3 8 1.5-4h4",
  code: "M5.5 4.5 2 8l3.5 3.5M10.5 4.5 14 8l-3.5 3.5",
  menu: "M2 4h12M2 8h12M2 12h12",
  close: "M3.5 3.5l9 9M12.5 3.5l-9 9",
  sun: "M8 11a3 3 0 1 0 0-6 3 3 0 0 0 0 6zM8 1.5v1M8 13.5v1M1.5 8h1M13.5 8h1M3.4 3.4l.7.7M11.9 11.9l.7.7M3.4 12.6l.7-.7M11.9 4.1l.7-.7",
  moon: "M13.5 9.5A6 6 0 0 1 6.5 2.5a6 6 0 1 0 7 7z",
  screen: "M2 3h12v8H2zM5.5 14h5M8 11v3",
  chevron: "M4.5 6.5 8 10l3.5-3.5",
  copy: "M5.5 5.5h8v8h-8zM10.5 5.5v-3h-8v8h3",
  check: "M3 8.5 6.5 12 13 4.5",
  alert: "M8 1.8 15 14H1zM8 6.5v3.5M8 12h.01",
  info: "M8 14.5a6.5 6.5 0 1 0 0-13 6.5 6.5 0 0 0 0 13zM8 7.5v3.5M8 5h.01",
  folder: "M1.5 3h5l1.5 2h6.5v8.5h-13z",
  file: "M3.5 1.5h6l3 3v10h-9zM9.5 1.5v3h3",
  upload: "M8 11V3M4.5 6 8 2.5 11.5 6M2.5 13.5h11",
  download: "M8 2.5v8M4.5 7.5 8 11l3.5-3.5M2.5 13.5h11",
  trash: "M2.5 4h11M6 4V2.5h4V4M4 4l.6 9.5h6.8L12 4M6.5 6.5v4.5M9.5 6.5v4.5",
  refresh: "M13.5 3v3.5H10M13 6.5A5.5 5.5 0 1 0 13.5 9",
  plus: "M8 3v10M3 8h10",
  stop: "M3.5 3.5h9v9h-9z",
  share: "M12 5.5a2 2 0 1 0 0-4 2 2 0 0 0 0 4zM4 10a2 2 0 1 0 0-4 2 2 0 0 0 0 4zM12 14.5a2 2 0 1 0 0-4 2 2 0 0 0 0 4zM5.8 7l4.4-2.5M5.8 9l4.4 2.5",
  terminal: "M2 2.5h12v11H2zM4.5 6 7 8l-2.5 2M8.5 10.5h3",
  external: "M6 3H2.5v10.5H13V10M9 2.5h4.5V7M13.5 2.5 7.5 8.5",
  log_out: "M6.5 2.5H3v11h3.5M10.5 11l3-3-3-3M13.5 8h-7",
  shield: "M8 1.5 13.5 3.5v4c0 3.5-2.3 6-5.5 7-3.2-1-5.5-3.5-5.5-7v-4z",
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name, size = 16 }: { name: IconName; size?: number }) {
  return (
    <svg class="icon" width={size} height={size} viewBox="0 0 16 16" aria-hidden="true" focusable="false">
      <path d={PATHS[name]} />
    </svg>
  );
}
