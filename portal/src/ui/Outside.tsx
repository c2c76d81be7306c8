import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { session } from "../session";
import { hasNavigated } from "../router";
import { ThemeButton } from "../Shell";
import "../styles/outside.css";
import { Brand } from "./Brand";
import { ButtonLink } from "./Button";

/** The bar over the pages that everybody sees. */
export function OutsideBar() {
  return (
    <header class="outside-bar">
      <Brand href="/" />
      <nav aria-label="Account" class="outside-nav">
        <ThemeButton />
        {session.value ? (
          <ButtonLink href="/app" kind="primary" small>
            Open the app
          </ButtonLink>
        ) : (
          <>
            <ButtonLink href="/login" kind="quiet" small>
              Log in
            </ButtonLink>
            <ButtonLink href="/register" kind="primary" small>
              Register
            </ButtonLink>
          </>
        )}
      </nav>
    </header>
  );
}

/** A page with one form in its middle. */
export function Outside({ title, children, below }: { title: string; children: ComponentChildren; below?: ComponentChildren }) {
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => {
    document.title = `${title} · Stockade`;
    if (hasNavigated()) heading.current?.focus();
  }, [title]);
  return (
    <div class="outside">
      <a class="skip" href="#main">
        Skip to the content
      </a>
      <OutsideBar />
      <main id="main" class="outside-main" tabIndex={-1}>
        <div class="card outside-card">
          <h1 ref={heading} tabIndex={-1}>
            {title}
          </h1>
          {children}
        </div>
        {below && <div class="outside-below">{below}</div>}
      </main>
    </div>
  );
}
