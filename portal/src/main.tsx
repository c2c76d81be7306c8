import "./styles/tokens.css";
import "./styles/base.css";
import "./styles/ui.css";
import "./styles/shell.css";

import { render } from "preact";
import { Pages } from "./router";
import { loadSession } from "./session";
import "./theme";
import { Toasts } from "./ui/Toast";

void loadSession();

const root = document.getElementById("app");
if (root) {
  render(
    <>
      <Pages />
      <Toasts />
    </>,
    root,
  );
}
