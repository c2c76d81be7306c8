import { closeBrackets, closeBracketsKeymap } from "@codemirror/autocomplete";
import { defaultKeymap, history, historyKeymap, indentWithTab } from "@codemirror/commands";
import { bracketMatching, foldGutter, foldKeymap, indentOnInput, indentUnit, syntaxHighlighting } from "@codemirror/language";
import { highlightSelectionMatches, searchKeymap } from "@codemirror/search";
import { Compartment, EditorState, Prec } from "@codemirror/state";
import {
  drawSelection,
  EditorView,
  highlightActiveLine,
  highlightActiveLineGutter,
  highlightSpecialChars,
  keymap,
  lineNumbers,
} from "@codemirror/view";
import { classHighlighter } from "@lezer/highlight";
import { useEffect, useRef } from "preact/hooks";
import { cspNonce } from "../csp";
import "../styles/editor.css";
import { isDark } from "../theme";
import { grammarOf } from "./languages";

interface EditorProps {
  label: string;
  language: string;
  /** What it begins with; from then on the editor has the text, and tells of each change. */
  value: string;
  /** Another version is another text: *value* is taken again. */
  version?: string;
  onValue?: (value: string) => void;
  /** Control and Enter (on a Mac: Command and Enter). */
  onRun?: () => void;
  readOnly?: boolean;
  describedBy?: string;
}

/** Typing over a selection. Left to itself Chromium would give what it joins a `style` attribute, which our policy refuses. */
const typingOver = EditorView.domEventHandlers({
  beforeinput(event, view) {
    const { main, ranges } = view.state.selection;
    const text = event.data;
    if (event.inputType !== "insertText" || !text || view.composing || ranges.length > 1 || main.empty) return false;
    const insert = () => view.state.update(view.state.replaceSelection(text), { userEvent: "input.type", scrollIntoView: true });
    const isTaken = view.state.facet(EditorView.inputHandler).some((handle) => handle(view, main.from, main.to, text, insert));
    if (!isTaken) view.dispatch(insert());
    return true;
  },
});

/** A code editor. Its colours are in the stylesheet; typing never waits for the page around it. */
export function CodeEditor({ label, language, value, version = "", onValue, onRun, readOnly = false, describedBy }: EditorProps) {
  const place = useRef<HTMLDivElement>(null);
  const view = useRef<EditorView | null>(null);
  const grammar = useRef(new Compartment());
  const look = useRef(new Compartment());
  const callbacks = useRef({ onValue, onRun });
  callbacks.current = { onValue, onRun };

  useEffect(() => {
    if (!place.current) return undefined;
    const run = Prec.highest(
      keymap.of([
        {
          key: "Mod-Enter",
          run: () => {
            callbacks.current.onRun?.();
            return Boolean(callbacks.current.onRun);
          },
        },
      ]),
    );
    const editing = [history(), closeBrackets(), indentOnInput(), highlightActiveLine(), highlightActiveLineGutter()];
    const made = new EditorView({
      parent: place.current,
      state: EditorState.create({
        doc: value,
        extensions: [
          EditorView.cspNonce.of(cspNonce()),
          run,
          typingOver,
          lineNumbers(),
          foldGutter(),
          highlightSpecialChars(),
          drawSelection(),
          bracketMatching(),
          highlightSelectionMatches(),
          syntaxHighlighting(classHighlighter),
          indentUnit.of("    "),
          readOnly ? [EditorState.readOnly.of(true), EditorView.lineWrapping] : editing,
          keymap.of([...closeBracketsKeymap, ...defaultKeymap, ...searchKeymap, ...historyKeymap, ...foldKeymap, ...(readOnly ? [] : [indentWithTab])]),
          EditorView.contentAttributes.of({ "aria-label": label, spellcheck: "false", tabindex: "0", ...(describedBy ? { "aria-describedby": describedBy } : {}) }),
          grammar.current.of([]),
          look.current.of([]),
          EditorView.updateListener.of((update) => {
            if (update.docChanged) callbacks.current.onValue?.(update.state.doc.toString());
          }),
        ],
      }),
    });
    view.current = made;
    return () => {
      view.current = null;
      made.destroy();
    };
  }, []);

  useEffect(() => {
    const shown = view.current;
    if (!shown || shown.state.doc.toString() === value) return;
    shown.dispatch({ changes: { from: 0, to: shown.state.doc.length, insert: value } });
  }, [version]);

  useEffect(() => {
    let isWanted = true;
    const show = (extension: Awaited<ReturnType<typeof grammarOf>>) => {
      if (isWanted) view.current?.dispatch({ effects: grammar.current.reconfigure(extension) });
    };
    // Without its grammar a program is black on white: no reason to disturb anybody.
    grammarOf(language).then(show, () => show([]));
    return () => {
      isWanted = false;
    };
  }, [language]);

  const dark = isDark.value;
  useEffect(() => {
    // Tells CodeMirror's own parts (panels, tooltips) which ground they stand on.
    view.current?.dispatch({ effects: look.current.reconfigure(EditorView.theme({}, { dark })) });
  }, [dark]);

  return <div ref={place} class={`editor ${readOnly ? "editor-fixed" : ""}`} />;
}
