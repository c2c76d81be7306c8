import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { hasNavigated } from "../router";

interface PageProps {
  title: string;
  /** One sentence below the title. */
  intro?: ComponentChildren;
  /** Buttons beside the title. */
  actions?: ComponentChildren;
  /** Use the whole width. */
  wide?: boolean;
  children: ComponentChildren;
}

/** The frame of every page inside the app: its title, which gets the focus when one comes here from another page. */
export function Page({ title, intro, actions, wide = false, children }: PageProps) {
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => {
    document.title = `${title} · Stockade`;
  }, [title]);
  useEffect(() => {
    if (hasNavigated()) heading.current?.focus();
  }, []);
  return (
    <div class={`page ${wide ? "page-wide" : ""}`}>
      <header class="page-head">
        <div>
          <h1 ref={heading} tabIndex={-1}>
            {title}
          </h1>
          {intro && <p class="page-intro">{intro}</p>}
        </div>
        {actions && <div class="page-actions">{actions}</div>}
      </header>
      {children}
    </div>
  );
}
