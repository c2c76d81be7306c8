/** Light, dark, or as the system has it; kept in this browser. */

import { computed, effect, signal } from "@preact/signals";

export type Theme = "light" | "dark" | "system";
export const THEMES: readonly Theme[] = ["system", "light", "dark"];

const KEY = "stockade.theme";
const system = matchMedia("(prefers-color-scheme: dark)");
const systemIsDark = signal(system.matches);

function stored(): Theme {
  try {
    const value = localStorage.getItem(KEY);
    return value === "light" || value === "dark" ? value : "system";
  } catch {
    return "system"; // storage is switched off
  }
}

export const theme = signal<Theme>(stored());
export const isDark = computed(() => (theme.value === "system" ? systemIsDark.value : theme.value === "dark"));

export function setTheme(value: Theme): void {
  theme.value = value;
  try {
    localStorage.setItem(KEY, value);
  } catch {
    // It holds until the page is closed.
  }
}

system.addEventListener("change", (event) => {
  systemIsDark.value = event.matches;
});

effect(() => {
  // The stylesheet's colours are light-dark() pairs: `color-scheme` chooses.
  document.documentElement.dataset["theme"] = theme.value;
});

/** The colour behind a custom property such as `--accent`, as `rgb(…)`, for what draws on a canvas. Read it again when `isDark` changes. */
export function colour(property: string): string {
  const probe = document.createElement("span");
  probe.style.color = `var(${property})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}
