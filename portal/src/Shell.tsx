/** The frame around every page of whoever signed in: side bar (on a phone a menu), and what belongs to the user. */

import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { Link, useLocation } from "wouter-preact";
import { routes } from "./routes";
import { isAdmin, logOut, session } from "./session";
import { setTheme, theme, THEMES, type Theme } from "./theme";
import { Brand } from "./ui/Brand";
import { IconButton } from "./ui/Button";
import { Icon, type IconName } from "./ui/Icon";
import { toastError } from "./ui/Toast";

const THEME_ICONS: Record<Theme, IconName> = { system: "screen", light: "sun", dark: "moon" };
const THEME_NAMES: Record<Theme, string> = { system: "As the system", light: "Light", dark: "Dark" };

/** Steps through the themes; its name says which one holds. */
export function ThemeButton() {
  const next = THEMES[(THEMES.indexOf(theme.value) + 1) % THEMES.length] ?? "system";
  return <IconButton icon={THEME_ICONS[theme.value]} label={`Theme: ${THEME_NAMES[theme.value]}`} onClick={() => setTheme(next)} />;
}

function MenuLinks({ who, onChoose }: { who: "user" | "admin"; onChoose: () => void }) {
  const [path] = useLocation();
  return (
    <ul>
      {routes
        .filter((route) => route.menu && route.who === who)
        .map((route) => {
          const isHere = path === route.path || path.startsWith(`${route.path}/`);
          return (
            <li key={route.path}>
              <Link href={route.path} aria-current={isHere ? "page" : undefined} onClick={onChoose}>
                <Icon name={route.menu?.icon ?? "list"} />
                {route.menu?.title}
              </Link>
            </li>
          );
        })}
    </ul>
  );
}

function UserMenu() {
  const [open, setOpen] = useState(false);
  const [, navigate] = useLocation();
  const element = useRef<HTMLDivElement>(null);
  const button = useRef<HTMLButtonElement>(null);
  useEffect(() => {
    if (!open) return undefined;
    const outside = (event: Event) => {
      if (!element.current?.contains(event.target as Node)) setOpen(false);
    };
    document.addEventListener("pointerdown", outside);
    document.addEventListener("focusin", outside);
    return () => {
      document.removeEventListener("pointerdown", outside);
      document.removeEventListener("focusin", outside);
    };
  }, [open]);
  const leave = async () => {
    try {
      await logOut();
      navigate("/");
    } catch (error) {
      toastError(error);
    }
  };
  const user = session.value?.user;
  return (
    <div
      class="user-menu"
      ref={element}
      onKeyDown={(event) => {
        if (event.key !== "Escape" || !open) return;
        setOpen(false);
        button.current?.focus();
      }}
    >
      <button type="button" ref={button} class="user-menu-button" aria-expanded={open} aria-controls="user-menu" onClick={() => setOpen(!open)}>
        <span class="avatar" aria-hidden="true">
          {(user?.name ?? "?").slice(0, 1).toUpperCase()}
        </span>
        <span class="user-menu-name">{user?.name}</span>
        <Icon name="chevron" />
      </button>
      <div id="user-menu" class="user-menu-panel" hidden={!open}>
        <p class="user-menu-who">
          Signed in as <strong>{user?.email}</strong>
        </p>
        <Link href="/app/account" onClick={() => setOpen(false)}>
          <Icon name="user" /> Account
        </Link>
        <Link href="/app/keys" onClick={() => setOpen(false)}>
          <Icon name="key" /> API keys
        </Link>
        <button type="button" onClick={leave}>
          <Icon name="log_out" /> Log out
        </button>
      </div>
    </div>
  );
}

export function Shell({ children }: { children: ComponentChildren }) {
  const [path] = useLocation();
  const [open, setOpen] = useState(false);
  useEffect(() => setOpen(false), [path]);
  return (
    <div class={`shell ${open ? "shell-open" : ""}`} onKeyDown={(event) => event.key === "Escape" && setOpen(false)}>
      <a class="skip" href="#main">
        Skip to the content
      </a>
      <header class="bar">
        <IconButton icon={open ? "close" : "menu"} label={open ? "Close menu" : "Open menu"} class="bar-menu" aria-expanded={open} aria-controls="menu" onClick={() => setOpen(!open)} />
        <Brand href="/app" />
        <div class="bar-end">
          <ThemeButton />
          <UserMenu />
        </div>
      </header>
      <nav class="side" id="menu" aria-label="Main">
        <MenuLinks who="user" onChoose={() => setOpen(false)} />
        {isAdmin.value && (
          <>
            <h2 id="menu-admin">Administration</h2>
            <MenuLinks who="admin" onChoose={() => setOpen(false)} />
          </>
        )}
      </nav>
      <main class="content" id="main" tabIndex={-1}>
        {children}
      </main>
    </div>
  );
}
