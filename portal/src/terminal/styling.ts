/**
 * Lets xterm.js set styles under a Content-Security-Policy without 'unsafe-inline'.
 *
 * It sets them in three ways. Properties (`element.style.color = …`) are always allowed. `<style>` elements need the
 * nonce of the page; it makes all of them while it opens. Colours of 24 bits go into the `style` attribute of a span,
 * which a policy refuses with or without a nonce, though the same text given to `style.cssText` is allowed.
 */

import { cspNonce } from "../csp";

/** Run `open`; each `<style>` element that it makes carries the nonce of the page. */
export function withStyleNonce(open: () => void): void {
  const nonce = cspNonce();
  const make = document.createElement.bind(document) as (name: string, options?: ElementCreationOptions) => HTMLElement;
  document.createElement = ((name: string, options?: ElementCreationOptions) => {
    const element = make(name, options);
    if (element instanceof HTMLStyleElement) {
      element.nonce = nonce;
    }
    return element;
  }) as typeof document.createElement;
  try {
    open();
  } finally {
    // What was laid over the prototype's method; with it gone, that one counts again.
    Reflect.deleteProperty(document, "createElement");
  }
}

let isTranslating = false;

/** From now on the `style` attribute of a span is set by way of its property: same effect, and allowed. */
export function translateStyleAttributes(): void {
  if (isTranslating) {
    return;
  }
  isTranslating = true;
  HTMLSpanElement.prototype.setAttribute = function (this: HTMLSpanElement, name: string, value: string): void {
    if (name === "style") {
      this.style.cssText = value;
    } else {
      Element.prototype.setAttribute.call(this, name, value);
    }
  };
}
