import type { ComponentChildren, JSX } from "preact";
import { Link } from "wouter-preact";
import { Icon, type IconName } from "./Icon";

export type ButtonKind = "primary" | "plain" | "danger" | "quiet";

interface Look {
  kind?: ButtonKind;
  small?: boolean;
  icon?: IconName;
  children?: ComponentChildren;
  class?: string;
}

function classes({ kind = "plain", small = false, class: more = "" }: Look): string {
  return `button button-${kind}${small ? " button-small" : ""}${more ? ` ${more}` : ""}`;
}

type ButtonProps = Look & { busy?: boolean } & Omit<JSX.ButtonHTMLAttributes<HTMLButtonElement>, "icon" | "class" | "children">;

/** A button. *busy* says that what it started goes on: it then takes no second click. */
export function Button({ kind, small, icon, busy = false, children, class: more, type = "button", disabled, ...rest }: ButtonProps) {
  return (
    <button {...rest} type={type} class={classes({ kind, small, class: more })} disabled={Boolean(disabled) || busy} aria-busy={busy}>
      {busy ? <span class="spinner spinner-small" aria-hidden="true" /> : icon && <Icon name={icon} />}
      {children}
    </button>
  );
}

/** A button of a drawing only; *label* is its name. */
export function IconButton({ icon, label, ...rest }: Omit<ButtonProps, "children"> & { icon: IconName; label: string }) {
  return (
    <Button kind="quiet" {...rest} class={`button-icon ${rest.class ?? ""}`} aria-label={label} title={label}>
      <Icon name={icon} />
    </Button>
  );
}

/** Looks like a button and goes to a page of ours. */
export function ButtonLink({ href, ...look }: Look & { href: string }) {
  return (
    <Link href={href} className={classes(look)}>
      {look.icon && <Icon name={look.icon} />}
      {look.children}
    </Link>
  );
}

/** Looks like a button and fetches a file from the API, outside the router. */
export function DownloadLink({ href, download = "", ...look }: Look & { href: string; download?: string }) {
  return (
    <a href={href} download={download} class={classes(look)}>
      <Icon name={look.icon ?? "download"} />
      {look.children}
    </a>
  );
}
