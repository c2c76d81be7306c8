/** How programs in each language are coloured. A language's grammar is fetched when it is chosen. */

import { LanguageSupport, StreamLanguage, type StreamParser } from "@codemirror/language";
import type { Extension } from "@codemirror/state";

const stream = (parser: StreamParser<unknown>): Extension => new LanguageSupport(StreamLanguage.define(parser));

const javascript = () => import("@codemirror/lang-javascript");
const python = () => import("@codemirror/lang-python").then((module) => module.python());
const cpp = () => import("@codemirror/lang-cpp").then((module) => module.cpp());
const clike = () => import("@codemirror/legacy-modes/mode/clike");
const mllike = () => import("@codemirror/legacy-modes/mode/mllike");
const basic = () => import("@codemirror/legacy-modes/mode/vb").then((module) => stream(module.vb));

/** By the server's names; a language that is missing is shown without colours. */
const GRAMMARS: Record<string, () => Promise<Extension>> = {
  assembly: () => import("@codemirror/legacy-modes/mode/gas").then((module) => stream(module.gas)),
  bash: () => import("@codemirror/legacy-modes/mode/shell").then((module) => stream(module.shell)),
  basic,
  c: cpp,
  clojure: () => import("@codemirror/legacy-modes/mode/clojure").then((module) => stream(module.clojure)),
  cobol: () => import("@codemirror/legacy-modes/mode/cobol").then((module) => stream(module.cobol)),
  "common-lisp": () => import("@codemirror/legacy-modes/mode/commonlisp").then((module) => stream(module.commonLisp)),
  cpp,
  csharp: () => clike().then((module) => stream(module.csharp)),
  d: () => import("@codemirror/legacy-modes/mode/d").then((module) => stream(module.d)),
  dart: () => clike().then((module) => stream(module.dart)),
  erlang: () => import("@codemirror/legacy-modes/mode/erlang").then((module) => stream(module.erlang)),
  fortran: () => import("@codemirror/legacy-modes/mode/fortran").then((module) => stream(module.fortran)),
  fsharp: () => mllike().then((module) => stream(module.fSharp)),
  go: () => import("@codemirror/lang-go").then((module) => module.go()),
  groovy: () => import("@codemirror/legacy-modes/mode/groovy").then((module) => stream(module.groovy)),
  haskell: () => import("@codemirror/legacy-modes/mode/haskell").then((module) => stream(module.haskell)),
  java: () => import("@codemirror/lang-java").then((module) => module.java()),
  kotlin: () => clike().then((module) => stream(module.kotlin)),
  lua: () => import("@codemirror/legacy-modes/mode/lua").then((module) => stream(module.lua)),
  node: () => javascript().then((module) => module.javascript()),
  "objective-c": () => clike().then((module) => stream(module.objectiveC)),
  ocaml: () => mllike().then((module) => stream(module.oCaml)),
  octave: () => import("@codemirror/legacy-modes/mode/octave").then((module) => stream(module.octave)),
  pascal: () => import("@codemirror/legacy-modes/mode/pascal").then((module) => stream(module.pascal)),
  perl: () => import("@codemirror/legacy-modes/mode/perl").then((module) => stream(module.perl)),
  php: () => import("@codemirror/lang-php").then((module) => module.php()),
  python,
  python2: python,
  r: () => import("@codemirror/legacy-modes/mode/r").then((module) => stream(module.r)),
  ruby: () => import("@codemirror/legacy-modes/mode/ruby").then((module) => stream(module.ruby)),
  rust: () => import("@codemirror/lang-rust").then((module) => module.rust()),
  scala: () => clike().then((module) => stream(module.scala)),
  sql: () => import("@codemirror/lang-sql").then((module) => module.sql()),
  swift: () => import("@codemirror/legacy-modes/mode/swift").then((module) => stream(module.swift)),
  tcl: () => import("@codemirror/legacy-modes/mode/tcl").then((module) => stream(module.tcl)),
  typescript: () => javascript().then((module) => module.javascript({ typescript: true })),
  vbnet: basic,
};

/** The grammar of *language*; nothing where there is none. */
export async function grammarOf(language: string): Promise<Extension> {
  return (await GRAMMARS[language]?.()) ?? [];
}
