import type { ComponentChildren } from "preact";
import { Icon, type IconName } from "./Icon";

/** Nothing to list: says so, and what to do about it. *isPage* when there is nothing else on the page. */
export function Empty({ icon, title, children, isPage = false }: { icon: IconName; title: string; children?: ComponentChildren; isPage?: boolean }) {
  const Title = isPage ? "h1" : "h2";
  return (
    <div class="empty">
      <Icon name={icon} size={28} />
      <Title>{title}</Title>
      {children}
    </div>
  );
}
